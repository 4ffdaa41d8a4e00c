//! The form of everything that is signed or kept: fixed fields in a fixed order, big-endian,
//! lengths before what varies. One value has one form: a reader refuses every other, and bytes
//! left over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ip_network::IpNetwork;
use thiserror::Error;

use crate::key::{Hash, PublicKey, Signature, WireguardKey};
use crate::name::Name;

/// The longest text and the most elements a list may have.
pub const MAX_TEXT: usize = 255;
pub const MAX_LIST: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlobError {
    #[error("it is cut off")]
    Short,
    #[error("bytes follow its end")]
    Long,
    #[error("its version {0} is not known here; a newer Causeway made it")]
    Version(u8),
    #[error("its {0} is not valid")]
    Field(&'static str),
}

#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    pub fn u8(&mut self, value: u8) -> &mut Writer {
        self.0.push(value);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Writer {
        self.raw(&value.to_be_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Writer {
        self.raw(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Writer {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes whose number both sides know.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes with their number before them.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        let length = u32::try_from(bytes.len()).expect("what we write is far below 4 GiB");
        self.u32(length).raw(bytes)
    }

    /// At most [`MAX_TEXT`] bytes; callers hold valid values.
    pub fn text(&mut self, text: &str) -> &mut Writer {
        let length = u8::try_from(text.len()).expect("texts are checked to be short");
        self.u8(length).raw(text.as_bytes())
    }

    pub fn name(&mut self, name: &Name) -> &mut Writer {
        self.text(name.as_str())
    }

    pub fn key(&mut self, key: &PublicKey) -> &mut Writer {
        self.raw(key.as_bytes())
    }

    pub fn wireguard_key(&mut self, key: &WireguardKey) -> &mut Writer {
        self.raw(key.as_bytes())
    }

    pub fn hash(&mut self, hash: &Hash) -> &mut Writer {
        self.raw(&hash.0)
    }

    pub fn signature(&mut self, signature: &Signature) -> &mut Writer {
        self.raw(&signature.0)
    }

    /// An IPv4 address that a dual-stack socket showed as IPv6 is written as what it is.
    pub fn address(&mut self, address: IpAddr) -> &mut Writer {
        match address.to_canonical() {
            IpAddr::V4(address) => self.u8(4).raw(&address.octets()),
            IpAddr::V6(address) => self.u8(6).raw(&address.octets()),
        }
    }

    pub fn endpoint(&mut self, endpoint: SocketAddr) -> &mut Writer {
        self.address(endpoint.ip()).u16(endpoint.port())
    }

    pub fn prefix(&mut self, prefix: IpNetwork) -> &mut Writer {
        self.address(prefix.network_address()).u8(prefix.netmask())
    }

    /// 0, or 1 and the value.
    pub fn option<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Writer, T) -> &mut Writer,
    ) -> &mut Writer {
        match value {
            None => self.u8(0),
            Some(value) => write(self.u8(1), value),
        }
    }

    pub fn list<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Writer, &T)) -> &mut Writer {
        let length = u16::try_from(values.len()).expect("lists are checked to be short");
        self.u16(length);
        for value in values {
            write(self, value);
        }
        self
    }
}

/// Reads what a [`Writer`] wrote. Every error names the field.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// All bytes must have been used.
    pub fn finish(self) -> Result<(), BlobError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(BlobError::Long)
        }
    }

    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], BlobError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BlobError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BlobError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(BlobError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, BlobError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, BlobError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, BlobError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, BlobError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], BlobError> {
        let length = self.u32()?;
        self.raw(usize::try_from(length).map_err(|_| BlobError::Short)?)
    }

    /// Printable ASCII without spaces at its ends: what is shown must not move a terminal's cursor.
    pub fn text(&mut self, field: &'static str) -> Result<String, BlobError> {
        let length = self.u8()?;
        let bytes = self.raw(usize::from(length))?;
        let text = std::str::from_utf8(bytes).map_err(|_| BlobError::Field(field))?;
        if is_plain(text) {
            Ok(text.to_owned())
        } else {
            Err(BlobError::Field(field))
        }
    }

    pub fn name(&mut self, field: &'static str) -> Result<Name, BlobError> {
        let text = self.text(field)?;
        text.parse().map_err(|_| BlobError::Field(field))
    }

    pub fn key(&mut self, field: &'static str) -> Result<PublicKey, BlobError> {
        PublicKey::new(self.array()?).map_err(|_| BlobError::Field(field))
    }

    pub fn wireguard_key(&mut self, field: &'static str) -> Result<WireguardKey, BlobError> {
        WireguardKey::new(self.array()?).map_err(|_| BlobError::Field(field))
    }

    pub fn hash(&mut self) -> Result<Hash, BlobError> {
        Ok(Hash(self.array()?))
    }

    pub fn signature(&mut self) -> Result<Signature, BlobError> {
        Ok(Signature(self.array()?))
    }

    pub fn address(&mut self, field: &'static str) -> Result<IpAddr, BlobError> {
        match self.u8()? {
            4 => Ok(Ipv4Addr::from(self.array::<4>()?).into()),
            6 => {
                let address = Ipv6Addr::from(self.array::<16>()?);
                // The same address must not have two forms.
                if address.to_ipv4_mapped().is_some() {
                    return Err(BlobError::Field(field));
                }
                Ok(address.into())
            }
            _ => Err(BlobError::Field(field)),
        }
    }

    pub fn endpoint(&mut self, field: &'static str) -> Result<SocketAddr, BlobError> {
        let address = self.address(field)?;
        match self.u16()? {
            0 => Err(BlobError::Field(field)),
            port => Ok(SocketAddr::new(address, port)),
        }
    }

    /// Host bits must be zero.
    pub fn prefix(&mut self, field: &'static str) -> Result<IpNetwork, BlobError> {
        let address = self.address(field)?;
        let length = self.u8()?;
        IpNetwork::new(address, length).map_err(|_| BlobError::Field(field))
    }

    pub fn option<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(BlobError::Field(field)),
        }
    }

    pub fn flag(&mut self, field: &'static str) -> Result<bool, BlobError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BlobError::Field(field)),
        }
    }

    /// An element has at least one byte, so a length that lies ends at the end of the bytes and
    /// allocates nothing before.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        most: usize,
        mut read: impl FnMut(&mut Reader<'a>) -> Result<T, BlobError>,
    ) -> Result<Vec<T>, BlobError> {
        let length = usize::from(self.u16()?);
        if length > most.min(MAX_LIST) {
            return Err(BlobError::Field(field));
        }
        let mut values = Vec::new();
        for _ in 0..length {
            values.push(read(self)?);
        }
        Ok(values)
    }
}

/// Printable ASCII, no spaces at the ends.
pub fn is_plain(text: &str) -> bool {
    text.len() <= MAX_TEXT
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && text.trim() == text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut out = Writer::new();
        write(&mut out);
        out.finish()
    }

    #[test]
    fn numbers_are_big_endian_and_lengths_come_before() {
        let bytes = written(|out| {
            out.u8(1)
                .u16(0x0203)
                .u32(0x0405_0607)
                .u64(0x0809_0a0b_0c0d_0e0f);
            out.text("ab")
                .bytes(&[7; 3])
                .list(&[1_u8, 2], |out, value| {
                    out.u8(*value);
                });
            out.option(None::<u8>, |out, value| out.u8(value))
                .option(Some(5), |out, value| out.u8(value));
        });
        assert_eq!(
            bytes,
            [
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 2, b'a', b'b', 0, 0, 0, 3, 7, 7,
                7, 0, 2, 1, 2, 0, 1, 5
            ]
        );
    }

    #[test]
    fn what_is_left_over_or_missing_is_refused() {
        let mut from = Reader::new(&[1, 2]);
        assert_eq!(from.u8(), Ok(1));
        assert_eq!(from.u16(), Err(BlobError::Short));
        assert_eq!(from.finish(), Err(BlobError::Long));
        assert_eq!(Reader::new(&[0xff; 4]).bytes(), Err(BlobError::Short));
        assert_eq!(Reader::new(&[0, 0, 0, 1]).bytes(), Err(BlobError::Short));
    }

    #[test]
    fn a_text_that_could_move_a_cursor_is_refused() {
        for bad in ["a\n", "\u{1b}[2J", " a", "a ", "é", "a\u{7f}", "\0"] {
            let bytes = written(|out| {
                out.text(bad);
            });
            assert_eq!(
                Reader::new(&bytes).text("text"),
                Err(BlobError::Field("text")),
                "{bad:?}"
            );
        }
        for good in ["", "eu west 1", "~!"] {
            let bytes = written(|out| {
                out.text(good);
            });
            assert_eq!(Reader::new(&bytes).text("text"), Ok(good.to_owned()));
        }
    }

    #[test]
    fn one_address_has_one_form() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let plain: IpAddr = "192.0.2.1".parse().unwrap();
        let bytes = written(|out| {
            out.address(mapped);
        });
        assert_eq!(bytes, [4, 192, 0, 2, 1]);
        assert_eq!(Reader::new(&bytes).address("address"), Ok(plain));
        let mut long = vec![6];
        long.extend("::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(
            Reader::new(&long).address("address"),
            Err(BlobError::Field("address"))
        );
        assert_eq!(
            Reader::new(&[5; 17]).address("address"),
            Err(BlobError::Field("address"))
        );
        assert_eq!(
            Reader::new(&[4, 192, 0, 2, 1, 0, 0]).endpoint("endpoint"),
            Err(BlobError::Field("endpoint"))
        );
    }

    #[test]
    fn a_prefix_has_no_host_bits_and_a_length_of_its_family() {
        let read = |bytes: &[u8]| Reader::new(bytes).prefix("prefix");
        assert_eq!(
            read(&[4, 10, 0, 0, 0, 8]),
            Ok("10.0.0.0/8".parse().unwrap())
        );
        for bad in [
            [4, 10, 0, 0, 1, 8],
            [4, 10, 0, 0, 0, 33],
            [4, 10, 0, 0, 0, 255],
        ] {
            assert_eq!(read(&bad), Err(BlobError::Field("prefix")));
        }
        let mut six = [0; 18];
        six[0] = 6;
        six[17] = 129;
        assert_eq!(read(&six), Err(BlobError::Field("prefix")));
    }

    #[test]
    fn a_choice_is_0_or_1() {
        assert_eq!(
            Reader::new(&[2]).flag("flag"),
            Err(BlobError::Field("flag"))
        );
        assert_eq!(
            Reader::new(&[2, 1]).option("option", Reader::u8),
            Err(BlobError::Field("option"))
        );
        assert_eq!(
            Reader::new(&[1, 7]).option("option", Reader::u8),
            Ok(Some(7))
        );
        assert_eq!(Reader::new(&[0]).option("option", Reader::u8), Ok(None));
    }

    #[test]
    fn a_list_is_as_long_as_it_says_and_not_longer_than_allowed() {
        let read = |bytes: &[u8], most| Reader::new(bytes).list("list", most, Reader::u8);
        assert_eq!(read(&[0, 2, 5, 6], 2), Ok(vec![5, 6]));
        assert_eq!(read(&[0, 3, 5, 6, 7], 2), Err(BlobError::Field("list")));
        assert_eq!(read(&[0x0f, 0xff, 5], MAX_LIST), Err(BlobError::Short));
        assert_eq!(
            read(&[0xff, 0xff, 5], usize::MAX),
            Err(BlobError::Field("list"))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic_and_what_is_read_is_written_alike(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let used = |from: &Reader<'_>| bytes[..bytes.len() - from.0.len()].to_vec();
            macro_rules! alike {
                ($read:expr, $write:expr) => {
                    let mut from = Reader::new(&bytes);
                    if let Ok(value) = $read(&mut from) {
                        let mut out = Writer::new();
                        let _ = $write(&mut out, value);
                        prop_assert_eq!(out.finish(), used(&from));
                    }
                };
            }
            alike!(|from: &mut Reader<'_>| from.text("x"), |out: &mut Writer, value: String| {
                out.text(&value);
            });
            alike!(|from: &mut Reader<'_>| from.name("x"), |out: &mut Writer, value: Name| {
                out.name(&value);
            });
            alike!(|from: &mut Reader<'_>| from.endpoint("x"), |out: &mut Writer, value| {
                out.endpoint(value);
            });
            alike!(|from: &mut Reader<'_>| from.prefix("x"), |out: &mut Writer, value| {
                out.prefix(value);
            });
            alike!(|from: &mut Reader<'_>| from.key("x"), |out: &mut Writer, value: PublicKey| {
                out.key(&value);
            });
            alike!(
                |from: &mut Reader<'_>| from.wireguard_key("x"),
                |out: &mut Writer, value: WireguardKey| {
                    out.wireguard_key(&value);
                }
            );
        }

        #[test]
        fn addresses_come_back_as_they_went(address in any::<IpAddr>(), port in 1..=u16::MAX) {
            let bytes = written(|out| {
                out.endpoint(SocketAddr::new(address, port));
            });
            let mut from = Reader::new(&bytes);
            let read = from.endpoint("endpoint");
            prop_assert_eq!(read, Ok(SocketAddr::new(address.to_canonical(), port)));
            prop_assert_eq!(from.finish(), Ok(()));
        }
    }
}
