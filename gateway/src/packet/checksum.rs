//! The Internet checksum (RFC 1071, RFC 1624).
//!
//! A running sum is a `u64` of big-endian 16-bit words, not yet folded, so sums of pieces just add.
//! A piece that is not the last must have an even length.

/// Bytes that one round of the wide loop takes.
const ROUND: usize = 32;

/// Adds `bytes` to `initial`. An odd last byte counts as the high half of a word.
#[inline]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    // Summed in little-endian order, which is what the machine loads; ones-complement sums may be
    // taken in either order and swapped once at the end (RFC 1071, 2B).
    let (rounds, rest) = bytes.as_chunks::<ROUND>();
    let mut total = wide(rounds);
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_le_bytes(*word));
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    total += u64::from(u32::from_le_bytes(last));
    initial + u64::from(fold(total).swap_bytes())
}

/// Independent 32-bit lanes widened into 64-bit sums: the form that the compiler turns into SSE2.
#[inline]
fn wide(rounds: &[[u8; ROUND]]) -> u64 {
    let mut lanes = [0_u64; ROUND / 4];
    for round in rounds {
        let (words, _) = round.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_le_bytes(*word));
        }
    }
    lanes.iter().sum()
}

/// The sum as one 16-bit word. It is 0 only for a sum of nothing but zeros.
#[inline]
pub fn fold(sum: u64) -> u16 {
    // 64 -> 33 -> 18 -> 17 -> 16 bits; each step keeps the sum modulo 0xffff.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What is written into a checksum field.
#[inline]
pub fn complement(sum: u64) -> u16 {
    !fold(sum)
}

/// As `complement`, but a UDP sum of 0 is sent as ffff, since 0 there means "none" (RFC 768).
#[inline]
pub fn complement_udp(sum: u64) -> u16 {
    match complement(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The pseudo-header of TCP, UDP or ICMPv6. `addresses` are source and destination as they lie in
/// the header, 8 bytes of IPv4 or 32 of IPv6; `length` is that of the transport header and payload.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses, u64::from(protocol) + length as u64)
}

/// Whether `bytes`, checksum field included, sum up as they should.
#[inline]
pub fn verify(bytes: &[u8], initial: u64) -> bool {
    fold(sum(bytes, initial)) == 0xffff
}

/// The checksum after one 16-bit word of what it covers changed (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    complement(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::reference;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed_there() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
        assert_eq!(complement(sum(&bytes, 0)), 0x220d);
    }

    #[test]
    fn an_update_equals_a_new_sum_also_where_the_older_equation_fails() {
        // RFC 1624, section 4: the case that gave ffff instead of 0.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn a_udp_sum_of_zero_is_written_as_ffff() {
        assert_eq!(complement(0xffff), 0);
        assert_eq!(complement_udp(0xffff), 0xffff);
        assert_eq!(complement_udp(0xfffe), 1);
    }

    #[test]
    fn the_largest_sums_fold_without_losing_a_carry() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0xffff_0001_0000), 1);
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum_at_any_length_and_alignment(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000), skip in 0_usize..9, initial: u32,
        ) {
            let bytes = &bytes[skip.min(bytes.len())..];
            let naive = reference::ones_complement(bytes, u64::from(initial));
            prop_assert_eq!(fold(sum(bytes, u64::from(initial))), naive);
        }

        #[test]
        fn an_update_of_a_word_keeps_the_checksum_valid(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..80), at: usize, new: u16,
        ) {
            let at = 2 + 2 * (at % (bytes.len() / 2 - 1));
            bytes[..2].fill(0);
            let checksum = complement(sum(&bytes, 0));
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            bytes[..2].copy_from_slice(&update(checksum, old, new).to_be_bytes());
            // Nothing but zeros is the one input whose sum cannot be spelled as ffff.
            prop_assert!(verify(&bytes, 0) || bytes.iter().all(|byte| *byte == 0));
        }
    }
}
