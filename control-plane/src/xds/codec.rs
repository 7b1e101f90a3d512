use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::catalog::version_text;
use super::session::Response;

/// Field numbers of `DeltaDiscoveryResponse`.
const VERSION_FIELD: u32 = 1;
const TYPE_FIELD: u32 = 4;
const NONCE_FIELD: u32 = 5;
const REMOVED_FIELD: u32 = 6;

/// Writes responses from bytes that sessions share, instead of serialising each resource again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SharedBytesCodec;

/// Encoding half of [`SharedBytesCodec`].
#[derive(Debug)]
pub(crate) struct ResponseEncoder;

/// Decoding half of [`SharedBytesCodec`].
#[derive(Debug)]
pub(crate) struct RequestDecoder;

impl Codec for SharedBytesCodec {
    type Encode = Response;
    type Decode = DeltaDiscoveryRequest;
    type Encoder = ResponseEncoder;
    type Decoder = RequestDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ResponseEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder
    }
}

impl Encoder for ResponseEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        write(&item, buffer);
        Ok(())
    }
}

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

fn write(response: &Response, buffer: &mut impl BufMut) {
    use prost::encoding::string::{encode, encode_repeated};

    encode(VERSION_FIELD, &version_text(response.revision), buffer);
    for resource in &response.resources {
        buffer.put_slice(&resource.field);
    }
    encode(TYPE_FIELD, &response.kind.url().to_owned(), buffer);
    encode(NONCE_FIELD, &response.nonce, buffer);
    let removed: Vec<String> = response.removed.iter().map(|n| n.to_string()).collect();
    encode_repeated(REMOVED_FIELD, &removed, buffer);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use isobar_proto::istio::workload::{Address, Workload, address};

    use super::super::catalog::Resource;
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
        let mut bytes = Vec::new();
        write(
            &Response {
                kind: Kind::Address,
                nonce: "n1".into(),
                revision: 7,
                resources: vec![resource.clone(), resource.clone()],
                removed: vec!["gone".into()],
            },
            &mut bytes,
        );
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
}
