use std::os::fd::OwnedFd;

use isobar_proto::istio::workload::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request, workload_response,
};
use prost::Message as _;

/// Both sides' buffer: a longer packet cannot be received.
pub(super) const PACKET: usize = 1024;
/// Room for an error text in an answer, with what surrounds it.
const ERROR_TEXT: usize = 900;

/// Who a pod is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodInfo {
    /// Pod name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// One message of the node agent.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod.
    Add {
        /// Kubernetes pod UID.
        uid: String,
        /// Who it is.
        info: PodInfo,
        /// Its network namespace.
        netns: OwnedFd,
    },
    /// Part of the snapshot: a pod the agent has no descriptor for; go on if it is served already.
    Keep {
        /// Kubernetes pod UID.
        uid: String,
    },
    /// The pod is gone.
    Del {
        /// Kubernetes pod UID.
        uid: String,
    },
    /// The snapshot is complete.
    SnapshotSent,
}

/// A packet that breaks the protocol. Its descriptors are closed.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The bytes are not a message.
    #[error("undecodable message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The message says nothing.
    #[error("empty message")]
    Empty,
    /// Wrong number of descriptors for the message.
    #[error("{what} came with {found} descriptors, expected {expected}")]
    Descriptors {
        /// Kind of the message.
        what: &'static str,
        /// Descriptors it must have.
        expected: usize,
        /// Descriptors it had.
        found: usize,
    },
    /// An addition that does not say who the pod is; the process cannot go on.
    #[error("pod {uid} was added without its name")]
    NoInfo {
        /// Kubernetes pod UID.
        uid: String,
    },
}

/// Our first packet.
pub(super) fn hello() -> Vec<u8> {
    ZdsHello {
        version: Version::V1.into(),
    }
    .encode_to_vec()
}

/// An answer; an error text too long for a packet is cut.
pub(super) fn answer(result: &Result<(), String>) -> Vec<u8> {
    let mut error = result.as_ref().err().cloned().unwrap_or_default();
    if error.len() > ERROR_TEXT {
        let cut = (0..=ERROR_TEXT)
            .rev()
            .find(|at| error.is_char_boundary(*at))
            .unwrap_or(0);
        error.truncate(cut);
    }
    let bytes = WorkloadResponse {
        payload: Some(workload_response::Payload::Ack(Ack { error })),
    }
    .encode_to_vec();
    debug_assert!(bytes.len() <= PACKET);
    bytes
}

impl Request {
    /// Reads one packet.
    ///
    /// # Errors
    /// When it breaks the protocol; `fds` are closed then.
    pub fn decode(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Result<Self, ProtocolError> {
        use workload_request::Payload;
        let message = WorkloadRequest::decode(bytes)?;
        let without = |what: &'static str, request: Self| {
            if fds.is_empty() {
                Ok(request)
            } else {
                Err(ProtocolError::Descriptors {
                    what,
                    expected: 0,
                    found: fds.len(),
                })
            }
        };
        match message.payload.ok_or(ProtocolError::Empty)? {
            Payload::Keep(keep) => without("keep", Self::Keep { uid: keep.uid }),
            Payload::Del(del) => without("del", Self::Del { uid: del.uid }),
            Payload::SnapshotSent(_) => without("snapshot_sent", Self::SnapshotSent),
            Payload::Add(add) => {
                let Some(info) = add.workload_info else {
                    return Err(ProtocolError::NoInfo { uid: add.uid });
                };
                let (1, Some(netns)) = (fds.len(), fds.pop()) else {
                    return Err(ProtocolError::Descriptors {
                        what: "add",
                        expected: 1,
                        found: fds.len(),
                    });
                };
                Ok(Self::Add {
                    uid: add.uid,
                    info: PodInfo {
                        name: info.name,
                        namespace: info.namespace,
                        service_account: info.service_account,
                    },
                    netns,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn bytes_are_those_of_the_wire() {
        assert_eq!(hello(), [0x08, 0x01]);
        assert_eq!(answer(&Ok(())), [0x0a, 0x00]);
        assert_eq!(answer(&Err("no".into())), [0x0a, 4, 0x0a, 2, b'n', b'o']);
        let long = answer(&Err("é".repeat(2000)));
        assert!(long.len() <= PACKET);
        WorkloadResponse::decode(&long[..]).unwrap();
    }

    #[test]
    fn reads_every_kind() {
        let add = b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01a\x12\x01b\x1a\x01c";
        let Request::Add { uid, info, .. } = Request::decode(add, vec![descriptor()]).unwrap()
        else {
            panic!()
        };
        assert_eq!(uid, "u1");
        assert_eq!(
            (&*info.name, &*info.namespace, &*info.service_account),
            ("a", "b", "c")
        );
        let keep = Request::decode(b"\x2a\x04\x0a\x02u1", vec![]).unwrap();
        assert!(matches!(keep, Request::Keep { uid } if uid == "u1"));
        let del = Request::decode(b"\x12\x04\x12\x02u1", vec![]).unwrap();
        assert!(matches!(del, Request::Del { uid } if uid == "u1"));
        // The uid of a deletion is field 2: field 1 is not read.
        let odd = Request::decode(b"\x12\x04\x0a\x02u1", vec![]).unwrap();
        assert!(matches!(odd, Request::Del { uid } if uid.is_empty()));
        assert!(matches!(
            Request::decode(b"\x1a\x00", vec![]).unwrap(),
            Request::SnapshotSent
        ));
    }

    #[test]
    fn refuses_what_breaks_the_protocol() {
        let add = b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01a\x12\x01b\x1a\x01c";
        for count in [0, 2] {
            let fds = (0..count).map(|_| descriptor()).collect();
            assert!(matches!(
                Request::decode(add, fds),
                Err(ProtocolError::Descriptors { .. })
            ));
        }
        assert!(Request::decode(b"\x2a\x04\x0a\x02u1", vec![descriptor()]).is_err());
        assert!(matches!(
            Request::decode(b"", vec![]),
            Err(ProtocolError::Empty)
        ));
        assert!(matches!(
            Request::decode(b"\xff", vec![]),
            Err(ProtocolError::Decode(_))
        ));
        let nameless = Request::decode(b"\x0a\x04\x0a\x02u1", vec![descriptor()]);
        assert!(matches!(nameless, Err(ProtocolError::NoInfo { .. })));
    }
}
