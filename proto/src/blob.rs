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
