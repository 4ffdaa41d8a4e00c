//! etcd's JSON: 64-bit numbers are strings, keys and values base64, and what is zero, false or
//! empty is left out.

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Int(pub(super) u64);

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Raw(pub(super) Vec<u8>);

impl TryFrom<String> for Int {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Int, Self::Error> {
        text.parse().map(Int)
    }
}

impl TryFrom<String> for Raw {
    type Error = data_encoding::DecodeError;

    fn try_from(text: String) -> Result<Raw, Self::Error> {
        BASE64.decode(text.as_bytes()).map(Raw)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    pub(super) cluster_id: Int,
    pub(super) revision: Int,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pair {
    pub(super) key: Raw,
    pub(super) value: Raw,
    pub(super) mod_revision: Int,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) header: Header,
    pub(super) kvs: Vec<Pair>,
    pub(super) more: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswer {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    responses: Vec<Response>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    response_range: Option<Range>,
}

impl TxnAnswer {
    /// The pairs that the nth operation, a get, found.
    pub(super) fn pairs(&self, nth: usize) -> &[Pair] {
        self.responses
            .get(nth)
            .and_then(|response| response.response_range.as_ref())
            .map_or(&[], |range| &range.kvs)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseAnswer {
    #[serde(rename = "ID")]
    pub(super) id: Int,
    #[serde(rename = "TTL")]
    pub(super) ttl: Int,
}

/// One line of a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    pub(super) header: Header,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: Int,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<Event>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) kv: Pair,
    pub(super) prev_kv: Pair,
}

impl Event {
    pub(super) fn is_delete(&self) -> bool {
        self.kind.as_deref() == Some("DELETE")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    /// Of gRPC.
    pub(super) code: u32,
    pub(super) message: String,
}

impl Failure {
    const NOT_FOUND: u32 = 5;
    const OUT_OF_RANGE: u32 = 11;

    /// Invalid, not found, exists, not permitted, precondition, out of range, not implemented:
    /// the rest (unavailable, out of time, exhausted, ...) may pass.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.code, 3 | 5 | 6 | 7 | 9 | 11 | 12 | 16)
    }

    pub(super) fn is_lease_gone(&self) -> bool {
        self.code == Failure::NOT_FOUND
    }

    /// A login is asked for, or the one that was given is not known any more.
    pub(super) fn wants_login(&self) -> bool {
        [
            "user name is empty",
            "invalid auth token",
            "revision of auth store is old",
        ]
        .iter()
        .any(|text| self.message.contains(text))
    }

    pub(super) fn is_denied(&self) -> bool {
        self.message.contains("permission denied")
    }

    pub(super) fn is_authentication_off(&self) -> bool {
        self.message.contains("authentication is not enabled")
    }

    /// Of what a stream ends with.
    pub(super) fn of_text(message: String) -> Failure {
        Failure { code: 0, message }
    }

    pub(super) fn is_compacted(&self) -> bool {
        self.code == Failure::OUT_OF_RANGE
    }
}

/// A transaction to be built up. Without comparisons it always succeeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Txn {
    compare: Vec<Value>,
    success: Vec<Value>,
}

pub(super) fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes.as_ref())
}

impl Txn {
    pub(super) fn new() -> Txn {
        Txn::default()
    }

    /// Fails if the key has changed since; revision 0 is a key that is not there.
    pub(super) fn unchanged(&mut self, key: &str, mod_revision: u64) -> &mut Txn {
        self.compare.push(json!({
            "key": base64(key),
            "target": "MOD",
            "result": "EQUAL",
            "mod_revision": mod_revision.to_string(),
        }));
        self
    }

    pub(super) fn under_lease(&mut self, key: &str, lease: u64) -> &mut Txn {
        self.compare.push(json!({
            "key": base64(key),
            "target": "LEASE",
            "result": "EQUAL",
            "lease": lease.to_string(),
        }));
        self
    }

    pub(super) fn get(&mut self, key: &str) -> &mut Txn {
        self.success
            .push(json!({"request_range": {"key": base64(key)}}));
        self
    }

    /// Of all keys that begin so, the last.
    pub(super) fn get_last(&mut self, beginning: &str) -> &mut Txn {
        self.success.push(json!({"request_range": {
            "key": base64(beginning),
            "range_end": base64(after_all(beginning)),
            "limit": "1",
            "sort_order": "DESCEND",
            "sort_target": "KEY",
        }}));
        self
    }

    pub(super) fn put(&mut self, key: &str, value: impl AsRef<[u8]>) -> &mut Txn {
        self.success
            .push(json!({"request_put": {"key": base64(key), "value": base64(value)}}));
        self
    }

    pub(super) fn put_leased(&mut self, key: &str, value: &str, lease: u64) -> &mut Txn {
        self.success.push(json!({"request_put": {
            "key": base64(key),
            "value": base64(value),
            "lease": lease.to_string(),
        }}));
        self
    }

    pub(super) fn delete(&mut self, key: &str) -> &mut Txn {
        self.success
            .push(json!({"request_delete_range": {"key": base64(key)}}));
        self
    }

    pub(super) fn request(&self) -> Value {
        json!({"compare": self.compare, "success": self.success})
    }
}

/// The end of the range of keys with this beginning, which ends in `/`.
pub(super) fn after_all(beginning: &str) -> Vec<u8> {
    let mut end = beginning.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
