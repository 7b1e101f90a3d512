//! The discovery call, its responses taken apart here: what the library reads a message into is as long
//! as the longest message so far for as long as the stream is open, which for a proxy that is told the
//! whole mesh at once would be a second mesh.

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Version, header};
use http_body_util::BodyExt as _;
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec as _, EncodeBody};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::ServiceExt as _;

const PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A cluster's whole state may come in one message.
const MAX_MESSAGE: usize = 200 << 20;
/// Whether the message is compressed, one byte, and its length, four: gRPC over HTTP/2, "Length-Prefixed-Message".
const HEAD: usize = 5;

/// Makes the call; returns once the server has accepted it.
pub(super) async fn call(
    channel: Channel,
    headers: MetadataMap,
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<Responses, Status> {
    let mut codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
    let requests = ReceiverStream::new(requests).map(Ok);
    let body = EncodeBody::new_client(codec.encoder(), requests, None, None);
    let mut request = http::Request::new(Body::new(body));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(PATH);
    *request.headers_mut() = headers.into_headers();
    for (name, value) in [
        (header::TE, "trailers"),
        (header::CONTENT_TYPE, "application/grpc"),
    ] {
        let value = HeaderValue::from_static(value);
        request.headers_mut().insert(name, value);
    }
    let failed = |error: tonic::transport::Error| Status::from_error(error.into());
    let response = channel.oneshot(request).await.map_err(failed)?;
    let (head, body) = response.into_parts();
    // A call that is refused may end with its first headers.
    match told(head.headers) {
        Some(status) if status.code() != Code::Ok => return Err(status),
        None if head.status != http::StatusCode::OK => {
            return Err(Status::new(
                code_of(head.status),
                format!("HTTP status {}", head.status),
            ));
        }
        _ => {}
    }
    Ok(Responses {
        body,
        unread: BytesMut::new(),
    })
}

/// What a server says to the call, one message after another.
pub(super) struct Responses {
    body: Body,
    /// Of the next message; nothing between messages.
    unread: BytesMut,
}

impl Responses {
    /// The next message; `None` when the server has ended the call as it should.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub(super) async fn message(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await.transpose()? else {
                return Err(Status::unknown("the call ended without a status"));
            };
            match frame.into_data() {
                Ok(data) => self.unread.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return match told(trailers) {
                        Some(status) if status.code() == Code::Ok => Ok(None),
                        Some(status) => Err(status),
                        None => Err(Status::unknown("the call ended without a status")),
                    };
                }
            }
        }
    }

    /// The next message, if all of it is here.
    fn take(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let Some((compressed, mut length)) = self.unread.split_first() else {
            return Ok(None);
        };
        if *compressed != 0 {
            return Err(Status::unimplemented(
                "the response is compressed, which was not asked for",
            ));
        }
        let Ok(length) = length.try_get_u32() else {
            return Ok(None);
        };
        let length = length as usize;
        if length > MAX_MESSAGE {
            return Err(Status::out_of_range(format!(
                "the response has {length} bytes; at most {MAX_MESSAGE} are taken"
            )));
        }
        let whole = HEAD + length;
        if self.unread.len() < whole {
            self.unread.reserve(whole - self.unread.len());
            return Ok(None);
        }
        let message = DeltaDiscoveryResponse::decode(&self.unread[HEAD..whole])
            .map_err(|error| Status::internal(format!("the response is malformed: {error}")))?;
        // Moved, and not cut off: a cut keeps the room of all that was read.
        self.unread = BytesMut::from(&self.unread[whole..]);
        Ok(Some(message))
    }
}

/// The status that headers tell of.
fn told(mut headers: HeaderMap) -> Option<Status> {
    // Nobody reads them, and those that are not base64 make the library panic.
    headers.remove("grpc-status-details-bin");
    Status::from_header_map(&headers)
}

/// As gRPC maps the answers of what stands before a server ("HTTP to gRPC Status Code Mapping").
const fn code_of(status: http::StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn framed(nonce: &str) -> Vec<u8> {
        let message = DeltaDiscoveryResponse {
            nonce: nonce.to_owned(),
            ..Default::default()
        };
        let content = message.encode_to_vec();
        let mut all = vec![0];
        all.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        all.extend(content);
        all
    }

    fn responses(body: Body) -> Responses {
        Responses {
            body,
            unread: BytesMut::new(),
        }
    }

    fn parts(parts: Vec<Vec<u8>>, trailers: &[(&'static str, &'static str)]) -> Responses {
        let data = parts.into_iter();
        let mut frames: Vec<Result<_, Status>> = data
            .map(|part| Ok(http_body::Frame::data(Bytes::from(part))))
            .collect();
        let pairs = trailers.iter();
        let trailers = pairs.map(|(k, v)| {
            let name = header::HeaderName::from_static(k);
            (name, HeaderValue::from_static(v))
        });
        let trailers: HeaderMap = trailers.collect();
        if !trailers.is_empty() {
            frames.push(Ok(http_body::Frame::trailers(trailers)));
        }
        responses(Body::new(StreamBody::new(tokio_stream::iter(frames))))
    }

    async fn nonces(mut from: Responses) -> (Vec<String>, Result<(), Status>) {
        let mut all = Vec::new();
        loop {
            match from.message().await {
                Ok(Some(message)) => all.push(message.nonce),
                Ok(None) => return (all, Ok(())),
                Err(status) => return (all, Err(status)),
            }
        }
    }

    #[tokio::test]
    async fn messages_arrive_however_they_are_cut() {
        let bytes = [framed("a"), framed(""), framed(&"long".repeat(9000))].concat();
        for size in [1, 3, 7, 4096, bytes.len()] {
            let cut = bytes.chunks(size).map(<[u8]>::to_vec).collect();
            let (all, end) = nonces(parts(cut, &[("grpc-status", "0")])).await;
            assert_eq!(all.len(), 3, "{size}");
            assert_eq!((&*all[0], all[2].len()), ("a", 36_000));
            assert!(end.is_ok());
        }
    }

    #[tokio::test]
    async fn nothing_of_a_long_message_is_kept() {
        let mut from = parts(vec![framed(&"long".repeat(90_000))], &[]);
        assert!(from.message().await.unwrap().is_some());
        assert_eq!(from.unread.capacity(), 0);
        let mut two = [framed(&"long".repeat(90_000)), framed("next")].concat();
        two.truncate(two.len() - 1);
        let mut from = parts(vec![two], &[]);
        assert!(from.message().await.unwrap().is_some());
        assert!(from.unread.capacity() < 64, "{}", from.unread.capacity());
    }

    #[tokio::test]
    async fn what_is_wrong_ends_the_call_with_its_cause() {
        let ended = |from| async { nonces(from).await.1.unwrap_err() };
        let status = ended(parts(
            vec![],
            &[("grpc-status", "14"), ("grpc-message", "gone")],
        ))
        .await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "gone")
        );
        let bad = [("grpc-status", "7"), ("grpc-status-details-bin", "*")];
        assert_eq!(
            ended(parts(vec![], &bad)).await.code(),
            Code::PermissionDenied
        );
        let cut = Body::new(Full::new(Bytes::from_static(&[0, 0, 0, 0, 9, 1])));
        assert_eq!(ended(responses(cut)).await.code(), Code::Unknown);
        let mut compressed = framed("a");
        compressed[0] = 1;
        let status = ended(parts(vec![compressed], &[])).await;
        assert_eq!(status.code(), Code::Unimplemented);
        let long = vec![0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(ended(parts(vec![long], &[])).await.code(), Code::OutOfRange);
        let malformed = vec![0, 0, 0, 0, 1, 0xff];
        assert_eq!(
            ended(parts(vec![malformed], &[])).await.code(),
            Code::Internal
        );
    }
}
