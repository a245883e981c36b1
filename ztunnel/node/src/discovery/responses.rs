//! The responses of a discovery stream, read field by field.
//!
//! The first response is one message with everything there is. The stream of the gRPC library keeps a buffer that
//! is as large as the largest message it ever got, for as long as the stream lives: 150 MiB that nobody needs, for
//! days. Here the fields of a message are decoded as they come in, so what is buffered is one resource at most, and
//! is given back with the message.
//!
//! Invariants: what was read is kept when a wait for more is given up. Nothing above [`MAX_RESPONSE`] is read, and
//! nothing with more than [`MAX_PARTS`] parts is decoded.

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{BufferSettings, EncodeBody};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_prost::ProstEncoder;
use tower_service::Service as _;
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::parts::{MAX_PARTS, parts, whole_fields};
use crate::control_plane::MAX_RESPONSE;
use crate::task::breath;

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Whether it is compressed, and its length.
const HEADER: usize = 5;

/// A stream of responses.
#[derive(Debug)]
pub(super) struct Responses {
    body: Body,
    /// What has come and is not decoded yet.
    buffer: BytesMut,
    message: Option<Message>,
    /// What the stream ended with. Of an answer that is nothing but an end it came with the head.
    trailers: Option<HeaderMap>,
}

/// A message that is being read.
#[derive(Debug, Default)]
struct Message {
    response: DeltaDiscoveryResponse,
    /// How many of its bytes are not decoded yet.
    left: usize,
    parts: usize,
    has_room: bool,
}

impl Message {
    /// Makes room for as many resources as will come if they are like those in the first `bytes`. A list that grows
    /// piece by piece is copied each time, in the end for milliseconds without a breath. What is not used of the room
    /// takes no memory.
    fn make_room(&mut self, bytes: usize) {
        let come = self.response.resources.len();
        if self.has_room || come == 0 {
            return;
        }
        self.has_room = true;
        let likely = (self.left / bytes).saturating_mul(come);
        let most = MAX_PARTS.saturating_sub(self.parts);
        self.response.resources.reserve_exact(likely.min(most));
    }
}

impl Responses {
    /// Sends `requests`, and waits for the control plane to take the call.
    pub(super) async fn open(
        mut channel: Channel,
        metadata: MetadataMap,
        requests: impl Stream<Item = DeltaDiscoveryRequest> + Send + 'static,
    ) -> Result<Self, Status> {
        let encoder = ProstEncoder::new(BufferSettings::default());
        let requests = EncodeBody::new_client(encoder, requests.map(Ok), None, None);
        let mut call = http::Request::post(METHOD)
            .version(http::Version::HTTP_2)
            .body(Body::new(requests))
            .map_err(|err| Status::from_error(err.into()))?;
        *call.headers_mut() = metadata.into_headers();
        for (name, value) in [("te", "trailers"), ("content-type", "application/grpc")] {
            call.headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        let failed = |err: tonic::transport::Error| Status::from_error(err.into());
        std::future::poll_fn(|cx| channel.poll_ready(cx))
            .await
            .map_err(failed)?;
        let (head, body) = channel.call(call).await.map_err(failed)?.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers)
            && status.code() != tonic::Code::Ok
        {
            return Err(status);
        }
        if head.status != StatusCode::OK {
            let text = format!("the answer has HTTP status {}", head.status);
            return Err(Status::unavailable(text));
        }
        let trailers = head.headers.contains_key("grpc-status");
        Ok(Self {
            trailers: trailers.then_some(head.headers),
            ..Self::new(body)
        })
    }

    fn new(body: Body) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            message: None,
            trailers: None,
        }
    }

    /// The next response; nothing when the control plane has ended the stream in order.
    pub(super) async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            if let Some(response) = self.decode()? {
                return Ok(Some(response));
            }
            // Frames that are here already come without a wait.
            breath::long_step();
            match self.body.frame().await {
                Some(frame) => match frame?.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                None => return self.end(),
            }
        }
    }

    /// Decodes what has come; gives the response when that was the rest of it.
    fn decode(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        if self.message.is_none() {
            let Some(length) = self.header()? else {
                return Ok(None);
            };
            self.message = Some(Message {
                left: length,
                ..Message::default()
            });
        }
        let Some(message) = &mut self.message else {
            return Ok(None);
        };
        let come = self.buffer.len().min(message.left);
        let whole = whole_fields(&self.buffer[..come]);
        // What is no field is left to the decoder to complain about.
        let whole = if come == message.left { come } else { whole };
        message.parts += parts(&self.buffer[..whole]);
        if message.parts > MAX_PARTS {
            let text = format!("the response has more than {MAX_PARTS} parts");
            return Err(Status::out_of_range(text));
        }
        // Fields one after the other, each read as if it were the message: that is what protobuf merges.
        let fields = self.buffer.split_to(whole).freeze();
        message
            .response
            .merge(fields)
            .map_err(|err| Status::internal(format!("the response cannot be decoded: {err}")))?;
        message.left -= whole;
        message.make_room(whole);
        if message.left > 0 {
            return Ok(None);
        }
        let rest = std::mem::take(&mut self.buffer);
        // A buffer of its own for what is left, so that the one there was can go.
        self.buffer.extend_from_slice(&rest);
        Ok(self.message.take().map(|message| message.response))
    }

    /// The length of the next message, once its header has come.
    fn header(&mut self) -> Result<Option<usize>, Status> {
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        let compressed = self.buffer.get_u8();
        let length = self.buffer.get_u32() as usize;
        if compressed != 0 {
            return Err(Status::internal(format!(
                "the response is compressed or no gRPC message: it begins with {compressed:#04x}"
            )));
        }
        if length > MAX_RESPONSE {
            return Err(Status::out_of_range(format!(
                "the response has {length} bytes, and at most {MAX_RESPONSE} are taken"
            )));
        }
        Ok(Some(length))
    }

    fn end(&self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let status = self.trailers.as_ref().and_then(Status::from_header_map);
        match status {
            Some(status) if status.code() != tonic::Code::Ok => Err(status),
            _ if self.message.is_some() || !self.buffer.is_empty() => Err(Status::internal(
                "the stream ended in the middle of a response",
            )),
            Some(_) => Ok(None),
            None => Err(Status::unknown("the stream ended without a status")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use hyper::body::Frame;
    use prost_types::Any;
    use ztunnel_proto::envoy::service::discovery::v3::Resource;

    use super::*;
    use crate::task::breath::looks;

    fn response(sizes: &[usize]) -> DeltaDiscoveryResponse {
        let resource = |(number, &size): (usize, &usize)| Resource {
            name: format!("resource{number}"),
            version: "1".to_owned(),
            resource: Some(Any {
                type_url: "type".to_owned(),
                value: vec![7; size],
            }),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            type_url: "type".to_owned(),
            nonce: "nonce".to_owned(),
            system_version_info: "1".to_owned(),
            resources: sizes.iter().enumerate().map(resource).collect(),
            removed_resources: vec!["gone".to_owned()],
        }
    }

    fn framed(response: &DeltaDiscoveryResponse) -> Vec<u8> {
        let content = response.encode_to_vec();
        let length = u32::try_from(content.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), &content].concat()
    }

    /// A body in pieces of `size`, with these trailers at the end.
    fn body(bytes: &[u8], size: usize, trailers: &[(&'static str, &'static str)]) -> Responses {
        let mut frames: Vec<_> = bytes
            .chunks(size)
            .map(|piece| Frame::data(Bytes::copy_from_slice(piece)))
            .collect();
        let trailers: HeaderMap = trailers
            .iter()
            .map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        if !trailers.is_empty() {
            frames.push(Frame::trailers(trailers));
        }
        let frames = frames.into_iter().map(Ok::<_, Infallible>);
        Responses::new(Body::new(http_body_util::StreamBody::new(
            tokio_stream::iter(frames),
        )))
    }

    #[tokio::test]
    async fn responses_are_read_whatever_pieces_they_come_in() {
        let sent = [response(&[0, 1, 300]), response(&[]), response(&[70_000])];
        let bytes: Vec<u8> = sent.iter().flat_map(framed).collect();
        for size in [1, 2, 3, 5, 7, 64, 1000, 16_384, bytes.len()] {
            let mut responses = body(&bytes, size, &[("grpc-status", "0")]);
            for expected in &sent {
                assert_eq!(responses.next().await.unwrap().as_ref(), Some(expected));
            }
            assert_eq!(responses.next().await.unwrap(), None, "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn no_more_than_a_resource_is_buffered_and_nothing_is_kept() {
        const SIZE: usize = 10_000;
        let sent = response(&[SIZE; 1000]);
        let mut responses = body(&framed(&sent), 16_384, &[("grpc-status", "0")]);
        // By hand, to look in between.
        let mut most = 0;
        let got = loop {
            if let Some(response) = responses.decode().unwrap() {
                break response;
            }
            let frame = responses.body.frame().await.unwrap().unwrap();
            responses
                .buffer
                .extend_from_slice(&frame.into_data().unwrap());
            most = most.max(responses.buffer.capacity());
        };
        assert_eq!(got, sent);
        assert!(most < 16 * SIZE, "{most}");
        assert_eq!(responses.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn a_long_response_takes_a_breath_after_each_piece() {
        let sent = response(&[300; 4000]);
        let bytes = framed(&sent);
        let mut responses = body(&bytes, 16_384, &[("grpc-status", "0")]);
        let before = looks::so_far();
        let got = responses.next().await.unwrap();
        let looks = looks::so_far() - before;
        assert_eq!(got.as_ref(), Some(&sent));
        assert!(looks >= bytes.len() / 16_384, "{looks}");
    }

    #[test]
    fn there_is_room_for_a_long_list_from_the_start() {
        let sent = response(&[300; 4000]).encode_to_vec();
        let mut message = Message {
            left: sent.len(),
            ..Message::default()
        };
        let whole = whole_fields(&sent[..16_384]);
        message.response.merge(&sent[..whole]).unwrap();
        message.left -= whole;
        message.make_room(whole);
        let room = message.response.resources.capacity();
        assert!((3900..4200).contains(&room), "{room}");
        // However long it says it is.
        let mut message = Message {
            left: MAX_RESPONSE,
            ..Message::default()
        };
        message.response.merge(&[0x12, 0][..]).unwrap();
        message.make_room(2);
        let room = message.response.resources.capacity();
        assert!(room <= MAX_PARTS + 4, "{room}");
    }

    async fn check_error(bytes: &[u8], trailers: &[(&'static str, &'static str)], expected: &str) {
        let mut responses = body(bytes, 100, trailers);
        let error = loop {
            match responses.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no error"),
                Err(error) => break error,
            }
        };
        let told = format!("{:?}: {}", error.code(), error.message());
        assert!(told.starts_with(expected), "{told}");
    }

    #[tokio::test]
    async fn what_is_no_response_is_an_error_that_says_so() {
        let good = framed(&response(&[10]));
        let ok = [("grpc-status", "0")];
        check_error(
            b"<html>",
            &ok,
            "Internal: the response is compressed or no gRPC message: it begins with 0x3c",
        )
        .await;
        check_error(
            &[1, 0, 0, 0, 0],
            &ok,
            "Internal: the response is compressed",
        )
        .await;
        check_error(
            &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff],
            &ok,
            "Internal: the response cannot be decoded: ",
        )
        .await;
        // A field that is longer than the message, and a group.
        check_error(
            &[0, 0, 0, 0, 2, 0x12, 0x7f],
            &ok,
            "Internal: the response cannot be decoded: ",
        )
        .await;
        check_error(
            &[0, 0, 0, 0, 1, 0x0b],
            &ok,
            "Internal: the response cannot be decoded: ",
        )
        .await;
        check_error(
            &[0, 0x0c, 0x80, 0, 1],
            &ok,
            "OutOfRange: the response has 209715201 bytes, and at most 209715200",
        )
        .await;
        check_error(
            &good[..good.len() - 1],
            &ok,
            "Internal: the stream ended in the middle",
        )
        .await;
        check_error(&good[..3], &ok, "Internal: the stream ended in the middle").await;
        check_error(&good, &[], "Unknown: the stream ended without a status").await;
        let refused = [("grpc-status", "16"), ("grpc-message", "who%20are%20you")];
        check_error(&good, &refused, "Unauthenticated: who are you").await;
    }

    #[test]
    fn every_beginning_of_a_message_is_split_at_the_end_of_a_field() {
        let content = response(&[0, 300, 5]).encode_to_vec();
        for end in 0..=content.len() {
            let whole = whole_fields(&content[..end]);
            assert!(DeltaDiscoveryResponse::decode(&content[..whole]).is_ok());
            assert!(end < content.len() || whole == end);
        }
    }
}
