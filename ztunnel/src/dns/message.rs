//! Queries and answers on the wire.

use std::net::IpAddr;
use std::str::FromStr as _;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Seconds an answer may be cached.
const TTL: u32 = 30;
/// Smallest payload every client takes.
const SMALLEST: u16 = 512;

/// A query worth looking at.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) message: Message,
    pub(super) name: String,
    pub(super) kind: RecordType,
}

/// What to do with a packet.
#[derive(Debug)]
pub(super) enum Read {
    /// Look it up.
    Query(Box<Query>),
    /// Answer this at once.
    Answer(Vec<u8>),
    /// Nothing can be answered.
    Drop,
}

/// Reads a packet of a client.
pub(super) fn read(packet: &[u8]) -> Read {
    let Ok(message) = Message::from_vec(packet) else {
        return Read::Drop;
    };
    let refuse = |code| match encode(&reply(&message, code)) {
        Some(bytes) => Read::Answer(bytes),
        None => Read::Drop,
    };
    // Never answered, or two servers that are told of each other answer for ever; one is enough, if told
    // that a query came from itself.
    if message.metadata.message_type == MessageType::Response {
        return Read::Drop;
    }
    if message.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [question] = message.queries.as_slice() else {
        return refuse(ResponseCode::FormErr);
    };
    let name = question.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.').to_owned();
    let kind = question.query_type();
    Read::Query(Box::new(Query {
        message,
        name,
        kind,
    }))
}

impl Query {
    /// An answer without records.
    pub(super) fn failed(&self, code: ResponseCode) -> Option<Vec<u8>> {
        encode(&reply(&self.message, code))
    }

    /// An answer from the mesh: no address means that the name has no such record.
    pub(super) fn answer(&self, alias: Option<&str>, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let mut message = reply(&self.message, ResponseCode::NoError);
        message.metadata.authoritative = true;
        let asked = self.message.queries.first()?.name().clone();
        let mut owner = asked.clone();
        if let Some(alias) = alias.filter(|_| !addresses.is_empty()) {
            owner = Name::from_str(alias).ok()?;
            owner.set_fqdn(true);
            let data = RData::CNAME(CNAME(owner.clone()));
            message.add_answer(Record::from_rdata(asked, TTL, data));
        }
        for ip in addresses {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            message.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        encode(&message)
    }

    /// Bytes the client takes in one datagram.
    pub(super) fn payload(&self) -> usize {
        let asked = self
            .message
            .edns
            .as_ref()
            .map_or(SMALLEST, Edns::max_payload);
        usize::from(asked.max(SMALLEST))
    }

    /// An answer that says: ask again over TCP.
    pub(super) fn truncated(&self) -> Option<Vec<u8>> {
        let mut message = reply(&self.message, ResponseCode::NoError);
        message.metadata.truncation = true;
        encode(&message)
    }
}

/// A query of our own, on the wire; `None` for what is no name.
pub(super) fn question(name: &str, v6: bool) -> Option<Vec<u8>> {
    let mut name = Name::from_str(name).ok()?;
    name.set_fqdn(true);
    let kind = if v6 { RecordType::AAAA } else { RecordType::A };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(hickory_proto::op::Query::query(name, kind));
    encode(&message)
}

/// The addresses in an answer; `None` if it was cut.
pub(super) fn addresses(answer: &[u8]) -> Option<Vec<IpAddr>> {
    let message = Message::from_vec(answer).ok()?;
    if message.metadata.truncation {
        return None;
    }
    let records = message.answers.iter();
    Some(
        records
            .filter_map(|record| match &record.data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                _ => None,
            })
            .collect(),
    )
}

fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload().max(SMALLEST));
        message.set_edns(edns);
    }
    message
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    message
        .to_vec()
        .map_err(|error| tracing::warn!(%error, "a DNS answer could not be written"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_not_answered() {
        let query = question("web.ns", false).unwrap();
        let Read::Query(asked) = read(&query) else {
            panic!("it is a query");
        };
        for code in [ResponseCode::NoError, ResponseCode::FormErr] {
            let answer = asked.failed(code).unwrap();
            assert!(matches!(read(&answer), Read::Drop), "{code}");
        }
        // What is no query otherwise is told so.
        let mut update = query;
        update[2] |= 5 << 3;
        assert!(matches!(read(&update), Read::Answer(_)));
    }
}
