//! Protocol messages as JSON, for programs.
//!
//! One rule for all of them, so that a field added to the protocol shows up by itself:
//!
//! * Every object begins with `"type"`; a message of one kind among several (an event) has the kind's name in `"kind"`.
//! * Field names are those of the `.proto` files. Fields that cannot be absent are always there.
//! * `bytes` are a string where they are valid UTF-8, else `{"base64": "…"}`. Nothing is neutralised or cut: JSON's own
//!   escapes suffice.
//! * Wall-clock times (`int64 …_ns`) are RFC 3339 in UTC with nine decimals, named `…_time` (`wall_ns`: `time`), null while there is
//!   none. Boot-clock times keep name and number.
//! * Enumerations are their names in lower case without the prefix: `"last_exit"`.
//! * Integers are numbers, up to 64 bits.

use std::{borrow::Cow, io, sync::LazyLock};

use anyhow::{Context, Result, anyhow};
use base64::{Engine, engine::general_purpose::STANDARD};
use breakglass_api::v1;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, ReflectMessage, Value};
use serde::{
    Serialize, Serializer,
    ser::{Error, SerializeMap},
};

use super::time;

/// A message that can be printed by itself.
pub trait Described: prost::Message {
    /// Its full name in the protocol.
    const NAME: &'static str;
    /// What `"type"` says.
    const TYPE: &'static str;
}

macro_rules! described {
    ($($message:ident $kind:literal),* $(,)?) => {
        $(impl Described for v1::$message {
            const NAME: &'static str = concat!("breakglass.v1.", stringify!($message));
            const TYPE: &'static str = $kind;
        })*
    };
}

described!(
    Host "host",
    Session "session",
    Command "command",
    RecordedEvent "event",
    ReplayItem "replay",
    SearchHit "hit",
    Review "review",
    Alarm "alert",
    Act "act",
    OrderAnswer "answer",
);

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(v1::DESCRIPTORS).map_err(|e| e.to_string()));

/// The kinds of events that there are.
pub fn event_kinds() -> Result<Vec<String>> {
    let event = pool()?.get_message_by_name("breakglass.v1.Event").context("no descriptor of events")?;
    let kinds = event.oneofs().flat_map(|body| body.fields().map(|field| field.name().to_owned()).collect::<Vec<_>>());
    Ok(kinds.collect())
}

fn pool() -> Result<&'static DescriptorPool> {
    POOL.as_ref().map_err(|e| anyhow!("the protocol's descriptors are unreadable: {e}"))
}

/// Writes a message as one JSON object, without a line end.
pub fn write<M: Described>(out: impl io::Write, message: &M) -> Result<()> {
    let descriptor = pool()?.get_message_by_name(M::NAME).with_context(|| format!("no descriptor of {}", M::NAME))?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
    serde_json::to_writer(out, &Top { kind: M::TYPE, message: &message }).map_err(io::Error::from)?;
    Ok(())
}

struct Top<'a> {
    kind: &'static str,
    message: &'a DynamicMessage,
}

impl Serialize for Top<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", self.kind)?;
        entries(&mut map, self.message)?;
        map.end()
    }
}

struct Message<'a>(&'a DynamicMessage);

impl Serialize for Message<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entries(&mut map, self.0)?;
        map.end()
    }
}

fn entries<M: SerializeMap>(map: &mut M, message: &DynamicMessage) -> Result<(), M::Error> {
    let descriptor = message.descriptor();
    let mut alternatives = descriptor.fields().filter(|field| field.containing_oneof().is_some());
    if let Some(field) = alternatives.find(|field| message.has_field(field)) {
        map.serialize_entry("kind", field.name())?;
    }
    for field in descriptor.fields() {
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        let value = message.get_field(&field);
        match (field.kind(), value.as_ref(), wall_clock(&field)) {
            (Kind::Int64, Value::I64(ns), Some(name)) => map.serialize_entry(&name, &time::rfc3339(*ns))?,
            (kind, value, _) => map.serialize_entry(field.name(), &Item { kind: &kind, value })?,
        }
    }
    Ok(())
}

/// What a wall-clock field is called in JSON; `None` for any other field.
fn wall_clock(field: &FieldDescriptor) -> Option<Cow<'static, str>> {
    let stem = field.name().strip_suffix("_ns").filter(|_| field.kind() == Kind::Int64)?;
    match stem.strip_suffix("wall").unwrap_or(stem).trim_end_matches('_') {
        "" => Some(Cow::Borrowed("time")),
        stem => Some(Cow::Owned(format!("{stem}_time"))),
    }
}

struct Item<'a> {
    kind: &'a Kind,
    value: &'a Value,
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Bool(v) => serializer.serialize_bool(*v),
            Value::I32(v) => serializer.serialize_i32(*v),
            Value::I64(v) => serializer.serialize_i64(*v),
            Value::U32(v) => serializer.serialize_u32(*v),
            Value::U64(v) => serializer.serialize_u64(*v),
            Value::F32(v) => serializer.serialize_f32(*v),
            Value::F64(v) => serializer.serialize_f64(*v),
            Value::String(v) => serializer.serialize_str(v),
            Value::Bytes(v) => bytes(v, serializer),
            Value::EnumNumber(v) => enumeration(self.kind, *v, serializer),
            Value::Message(v) => Message(v).serialize(serializer),
            Value::List(v) => serializer.collect_seq(v.iter().map(|value| Item { kind: self.kind, value })),
            Value::Map(_) => Err(S::Error::custom("the protocol has no maps")),
        }
    }
}

fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("base64", &STANDARD.encode(bytes))?;
            map.end()
        }
    }
}

fn enumeration<S: Serializer>(kind: &Kind, number: i32, serializer: S) -> Result<S::Ok, S::Error> {
    match kind.as_enum().and_then(|e| Some((e, e.get_value(number)?))) {
        Some((of, value)) => serializer.serialize_str(&enum_name(of, value.name())),
        // A value that a newer collector knows.
        None => serializer.serialize_i32(number),
    }
}

/// `CLOSE_CAUSE_LAST_EXIT` of `CloseCause` is `last_exit`.
fn enum_name(of: &EnumDescriptor, value: &str) -> String {
    let mut prefix = String::new();
    for c in of.name().chars() {
        if c.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    value.strip_prefix(&prefix).unwrap_or(value).trim_start_matches('_').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed<M: Described>(message: &M) -> serde_json::Value {
        let mut out = Vec::new();
        write(&mut out, message).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn bytes_are_text_or_base64() {
        let exec = v1::Exec {
            argv: vec![b"a\x1b\"".to_vec(), vec![0xff], Vec::new()],
            exe: "/bin/é".into(),
            ..v1::Exec::default()
        };
        let value = parsed(&v1::Command { number: 3, exec: Some(exec), ..v1::Command::default() });
        assert_eq!(value["type"], "command");
        assert_eq!(value["number"], 3);
        assert_eq!(value["exec"]["argv"], json!(["a\u{1b}\"", {"base64": "/w=="}, ""]));
        assert_eq!(value["exec"]["exe"], "/bin/é");
        assert_eq!(value["exec"]["cwd"], "", "a field that cannot be absent is there");
        assert!(value.get("failed").is_none(), "a message that is absent is not");
    }

    #[test]
    fn times_and_enumerations_have_names() {
        let closed = v1::SessionClosed { cause: v1::CloseCause::LastExit.into(), ..v1::SessionClosed::default() };
        let session = v1::Session { opened_ns: 1, closed: Some(closed), ..v1::Session::default() };
        let value = parsed(&session);
        assert_eq!(value["opened_time"], "1970-01-01T00:00:00.000000001Z");
        assert_eq!(value["closed_time"], json!(null));
        assert_eq!(value["closed"]["cause"], "last_exit");
        let unknown = v1::SessionClosed { cause: 99, ..v1::SessionClosed::default() };
        let value = parsed(&v1::Session { closed: Some(unknown), ..v1::Session::default() });
        assert_eq!(value["closed"]["cause"], 99);
    }

    #[test]
    fn an_event_names_its_kind() {
        let body =
            v1::event::Body::Gap(v1::Gap { ring: v1::Ring::Bulk.into(), records: u64::MAX, ..v1::Gap::default() });
        let event = v1::Event { boot_ns: u64::MAX, body: Some(body), ..v1::Event::default() };
        let value = parsed(&v1::RecordedEvent { wall_ns: 1, event: Some(event), ..v1::RecordedEvent::default() });
        assert_eq!(value["time"], "1970-01-01T00:00:00.000000001Z");
        assert_eq!(value["event"]["kind"], "gap");
        assert_eq!(value["event"]["boot_ns"], u64::MAX);
        assert_eq!(value["event"]["gap"]["ring"], "bulk");
        assert_eq!(value["event"]["gap"]["records"], u64::MAX);
    }
}
