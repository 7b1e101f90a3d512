use std::convert::Infallible;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt as _};
use http::HeaderMap;
use http_body_util::StreamBody;
use hyper::body::Frame;
use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use prost::bytes::Buf;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder};

use super::catalog::{Resource, version_text};
use super::session::Response;

/// Field numbers of `DeltaDiscoveryResponse`.
const VERSION_FIELD: u32 = 1;
const TYPE_FIELD: u32 = 4;
const NONCE_FIELD: u32 = 5;
const REMOVED_FIELD: u32 = 6;

/// A response is written in pieces of about this many bytes, each when the client can take it: the
/// first answer to a client is megabytes, and many may connect at once.
const PIECE: usize = 32 * 1024;
/// What gRPC writes before a message: not compressed, and its length.
const PREFIX: usize = 5;

/// Reads requests.
#[derive(Debug)]
pub(crate) struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        if !buffer.has_remaining() {
            return Ok(Some(DeltaDiscoveryRequest::default()));
        }
        DeltaDiscoveryRequest::decode(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("not a discovery request: {error}")))
    }
}

/// The body of an answer: each response, then the status that `responses` ends with.
pub(crate) fn body(
    responses: impl Stream<Item = Result<Response, Status>> + Send + 'static,
) -> Body {
    let frames = responses.flat_map(|told| match told {
        Ok(response) => stream::iter(Pieces::of(&response))
            .map(|piece| Ok::<_, Infallible>(Frame::data(piece)))
            .left_stream(),
        Err(status) => stream::iter([Ok(Frame::trailers(trailers(&status)))]).right_stream(),
    });
    Body::new(StreamBody::new(frames))
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its message cannot be written; that it failed can.
        trailers.clear();
        let code = http::HeaderValue::from(status.code() as i32);
        trailers.insert("grpc-status", code);
    }
    trailers
}

/// A response on the wire, from bytes that sessions share, a piece at a time.
struct Pieces {
    head: BytesMut,
    resources: Arc<[Arc<Resource>]>,
    next: usize,
    tail: Option<BytesMut>,
}

impl Pieces {
    fn of(response: &Response) -> Self {
        use prost::encoding::string::{encode, encode_repeated};

        let mut tail = BytesMut::new();
        encode(TYPE_FIELD, &response.kind.url().to_owned(), &mut tail);
        encode(NONCE_FIELD, &response.nonce, &mut tail);
        let removed: Vec<String> = response.removed.iter().map(|n| n.to_string()).collect();
        encode_repeated(REMOVED_FIELD, &removed, &mut tail);

        let fields = response.resources.iter().map(|one| one.field.len());
        let fields: usize = fields.sum();
        let mut head = BytesMut::with_capacity(PIECE.min(fields + 256));
        head.put_bytes(0, PREFIX);
        encode(VERSION_FIELD, &version_text(response.revision), &mut head);
        let length = head.len() - PREFIX + fields + tail.len();
        // No client takes a message that long.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        head[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        Self {
            head,
            resources: response.resources.clone(),
            next: 0,
            tail: Some(tail),
        }
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = std::mem::take(&mut self.head);
        while let Some(resource) = self.resources.get(self.next) {
            let field = &resource.field;
            if !piece.is_empty() && piece.len() + field.len() > PIECE {
                return Some(piece.freeze());
            }
            self.next += 1;
            if field.len() >= PIECE {
                return Some(field.clone());
            }
            if piece.is_empty() {
                piece.reserve(PIECE);
            }
            piece.put_slice(field);
        }
        piece.unsplit(self.tail.take()?);
        Some(piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use isobar_proto::istio::workload::{Address, Workload, address};

    use super::super::kind::Kind;
    use super::*;

    #[test]
    fn the_bytes_are_an_ordinary_response() {
        let address = Address {
            r#type: Some(address::Type::Workload(Workload {
                uid: "c//Pod/ns/p".into(),
                name: "p".into(),
                ..Workload::default()
            })),
        };
        let resource = Arc::new(Resource::new(Kind::Address, "c//Pod/ns/p", &address));
        let bytes = written(&Response {
            kind: Kind::Address,
            nonce: "n1".into(),
            revision: 7,
            resources: [resource.clone(), resource.clone()].into(),
            removed: vec!["gone".into()],
        });
        assert_eq!(bytes.len(), 1);
        let bytes = message(&bytes);
        let read = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!(read.nonce, "n1");
        assert_eq!(read.type_url, Kind::Address.url());
        assert_eq!(read.removed_resources, ["gone"]);
        assert_eq!(read.resources.len(), 2);
        let first = &read.resources[0];
        assert_eq!(first.version, version_text(resource.version));
        let body = first.resource.as_ref().unwrap();
        assert_eq!(body.type_url, Kind::Address.url());
        assert_eq!(Address::decode(&*body.value).unwrap(), address);
    }

    /// The pieces of a response.
    fn written(response: &Response) -> Vec<Bytes> {
        Pieces::of(response).collect()
    }

    /// What is behind the prefix, which has to tell its length.
    fn message(pieces: &[Bytes]) -> Vec<u8> {
        let whole = pieces.concat();
        let length = u32::from_be_bytes(whole[1..PREFIX].try_into().unwrap());
        assert_eq!((whole[0], length as usize), (0, whole.len() - PREFIX));
        whole[PREFIX..].to_vec()
    }

    #[test]
    fn a_long_response_comes_in_pieces() {
        let resource = |number: usize| {
            let workload = Workload {
                // One is longer than a piece.
                name: "x".repeat(if number == 50 { 2 * PIECE } else { 3000 }),
                ..Workload::default()
            };
            Arc::new(Resource::new(Kind::Address, &number.to_string(), &workload))
        };
        let response = Response {
            kind: Kind::Address,
            nonce: "n1".into(),
            revision: 7,
            resources: (0..100).map(resource).collect(),
            removed: Vec::new(),
        };
        let pieces = written(&response);
        let short = |piece: &&Bytes| piece.len() <= PIECE;
        assert_eq!(pieces.iter().filter(short).count(), pieces.len() - 1);
        assert!((10..16).contains(&pieces.len()), "{}", pieces.len());
        let read = DeltaDiscoveryResponse::decode(&*message(&pieces)).unwrap();
        let names: Vec<String> = read.resources.into_iter().map(|one| one.name).collect();
        let all: Vec<String> = (0..100).map(|number: usize| number.to_string()).collect();
        assert_eq!(names, all);
    }

    #[tokio::test]
    async fn the_last_thing_said_is_the_status() {
        use http_body_util::BodyExt as _;

        let status = Status::permission_denied("no");
        let collected = body(stream::iter([Err(status)])).collect().await.unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["grpc-message"], "no");
    }
}
