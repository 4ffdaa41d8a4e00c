//! Attributes of netlink, one inside the other, as they lie in a message.

/// Kind and content of each; ends where a length does not fit.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

const HEADER: usize = 4;
/// The two upper bits tell of nesting and byte order.
const KIND: u16 = 0x3fff;

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [l0, l1, k0, k1, ..] = *self.0 else {
            return None;
        };
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let content = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & KIND, content))
    }
}

impl<'a> Attributes<'a> {
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find(|(found, _)| *found == kind)
            .map(|(_, content)| content)
    }

    pub(super) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub(super) fn text(self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }

    pub(super) fn number(self, kind: u16) -> Option<u32> {
        let bytes = self.get(kind)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    pub(super) fn long(self, kind: u16) -> Option<u64> {
        let bytes = self.get(kind)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    }
}

/// Up to its end mark.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
