//! Traces: what endpoints are told of them, and what a collector gets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use isobar_proto::isobar::v1 as proto;
use isobar_waypoint::traces;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::bed::*;

const COLLECTOR: &str = "otel.obs.svc.cluster.local";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const ALL: u32 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps what it is sent.
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let gone = |_| Status::unavailable("stopped");
        self.0.send(request.into_inner()).await.map_err(gone)?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Tells the waypoint where spans go, by a name.
fn tell(bed: &Bed, to: Option<(u16, u32)>) {
    let tracing = to.map(|(port, per_million)| proto::Tracing {
        host: COLLECTOR.into(),
        port: port.into(),
        per_million,
    });
    let own = proto::Waypoint {
        namespace: "default".into(),
        name: "wp".into(),
        traffic: proto::waypoint::Traffic::All.into(),
        hostname: WAYPOINT_HOST.into(),
        tracing,
        ..proto::Waypoint::default()
    };
    bed.tables(|tables| tables.set_waypoint(&own).unwrap());
}

/// Has spans sent to a port of this machine, from the moment this returns.
async fn trace(bed: &Bed, port: u16, per_million: u32) {
    let here = vec![IpAddr::from([127, 0, 0, 1])];
    bed.zone.lock().unwrap().insert(COLLECTOR.to_owned(), here);
    let world = bed.worker.world.clone();
    let followed = traces::follow(world.clone(), bed.scope.lifetime());
    bed.scope.spawn("spans", followed);
    tell(bed, Some((port, per_million)));
    while !world.spans.is_open() {
        tokio::task::yield_now().await;
    }
}

/// Starts a collector and has spans sent to it.
async fn collector(bed: &Bed, per_million: u32) -> mpsc::Receiver<ExportTraceServiceRequest> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = listener.await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, batches) = mpsc::channel(8);
    let service = TraceServiceServer::new(Collector(sender));
    let server = Server::builder().add_service(service);
    bed.scope.spawn("collector", async move {
        // It lives as long as the test.
        let _ = server
            .serve_with_incoming(TcpIncoming::from(listener))
            .await;
    });
    trace(bed, port, per_million).await;
    batches
}

/// Ends the recording after so many requests; every span that was sent, in the order in which requests ended.
async fn spans(
    bed: &Bed,
    requests: usize,
    mut batches: mpsc::Receiver<ExportTraceServiceRequest>,
) -> Vec<Span> {
    for _ in 0..requests {
        bed.line().await;
    }
    bed.worker.world.spans.finish(PATIENCE).await;
    let mut all = Vec::new();
    while let Ok(batch) = batches.try_recv() {
        for one in batch.resource_spans {
            let told = one.resource.unwrap().attributes;
            assert_eq!(text(&told, "service.name"), "wp.default");
            assert_eq!(text(&told, "k8s.pod.name"), "wp-1");
            assert_eq!(text(&told, "k8s.namespace.name"), "default");
            all.extend(one.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    all
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|one| one.key == key);
    let value = found.and_then(|one| one.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn got<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let value = answer.headers.get(format!("x-got-{name}"));
    value.map(|value| value.to_str().unwrap())
}

#[test]
fn calls_in_a_row_are_one_trace_and_each_has_a_span() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|t| t.upsert_policy(&deny_path("/admin")));
        let batches = collector(&bed, ALL).await;
        let mut client = bed.client("client").await;
        let first = client.with("/one?secret=1", &[("tracestate", "a=1")]).await;
        let passed = got(&first, "traceparent").unwrap().to_owned();
        assert_eq!(got(&first, "tracestate"), None, "nobody's state");
        // As an application does that calls on: with what it got.
        let onwards = [("traceparent", &*passed), ("tracestate", "a=1")];
        let second = client.with("/two", &onwards).await;
        assert_eq!(got(&second, "tracestate"), Some("a=1"));
        let denied = client.with("/admin", &onwards).await;
        assert_eq!((second.status, denied.status), (200, 403));
        let failed = client.with("/fail", &onwards).await;
        assert_eq!(failed.status, 500);

        let all = spans(&bed, 4, batches).await;
        let [one, two, denied, failed] = &all[..] else {
            panic!("{all:?}")
        };
        let ids = format!("00-{}-{}-01", hex(&one.trace_id), hex(&one.span_id));
        assert_eq!(ids, passed);
        assert!(one.parent_span_id.is_empty());
        for next in [two, denied, failed] {
            assert_eq!(next.trace_id, one.trace_id);
            assert_eq!(next.parent_span_id, one.span_id);
            assert_eq!(next.trace_state, "a=1");
        }
        assert_ne!(two.span_id, denied.span_id);
        assert_eq!(one.name, "GET default");
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.path", "/one"),
            ("url.scheme", "http"),
            ("server.address", "svc"),
            ("server.port", "8080"),
            ("network.protocol.version", "1.1"),
            ("response_flags", "-"),
            ("istio.source_workload", "client"),
            ("istio.source_namespace", "default"),
            ("istio.destination_workload", "a"),
            ("istio.destination_canonical_service", "svc"),
            ("istio.destination_canonical_revision", "latest"),
            ("istio.destination_service", HOST),
        ] {
            assert_eq!(text(&one.attributes, key), value, "{key}");
        }
        let status = |span: &Span| text(&span.attributes, "http.response.status_code");
        assert_eq!(
            (status(denied), status(failed)),
            ("403".into(), "500".into())
        );
        let codes = [one, denied, failed].map(|span| span.status.as_ref().unwrap().code);
        assert_eq!(codes, [0, 0, 2]);
        assert!(one.end_time_unix_nano >= one.start_time_unix_nano);
        let age = jiff::Timestamp::now().as_nanosecond() - i128::from(one.start_time_unix_nano);
        assert!((0..60_000_000_000).contains(&age), "{age}");
        let page = bed
            .registry
            .register("isobar_spans", "", bed.worker.world.spans.outcomes());
        drop(page);
        let page = bed.registry.encode();
        assert!(
            page.contains("isobar_spans_total{outcome=\"exported\"} 4"),
            "{page}"
        );
    });
}

#[test]
fn the_callers_decision_and_its_form_go_on() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let batches = collector(&bed, 0).await;
        let mut client = bed.client("client").await;
        let single = format!("{TRACE}-{SPAN}-1");
        let answer = client.with("/b3", &[("b3", &single)]).await;
        let b3 = got(&answer, "b3").unwrap().to_owned();
        let parts: Vec<&str> = b3.split('-').collect();
        assert_eq!((parts[0], parts[2], parts[3]), (TRACE, "1", SPAN));
        let expect = format!("00-{TRACE}-{}-01", parts[1]);
        assert_eq!(got(&answer, "traceparent"), Some(&*expect));
        assert_eq!(got(&answer, "x-b3-traceid"), None);

        let several = [
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", SPAN),
            ("x-b3-sampled", "0"),
        ];
        let answer = client.with("/no", &several).await;
        assert_eq!(got(&answer, "x-b3-traceid"), Some(TRACE));
        assert_eq!(got(&answer, "x-b3-parentspanid"), Some(SPAN));
        assert_eq!(got(&answer, "x-b3-sampled"), Some("0"));
        let parent = got(&answer, "traceparent").unwrap();
        assert!(
            parent.ends_with("-00") && parent.contains(TRACE),
            "{parent}"
        );

        let twice = format!("00-{TRACE}-{SPAN}-01");
        let malformed = [("traceparent", &*twice), ("traceparent", &*twice)];
        let answer = client.with("/new", &malformed).await;
        let parent = got(&answer, "traceparent").unwrap();
        assert!(
            parent.ends_with("-00") && !parent.contains(TRACE),
            "{parent}"
        );

        let all = spans(&bed, 3, batches).await;
        let [span] = &all[..] else { panic!("{all:?}") };
        assert_eq!(hex(&span.span_id), parts[1]);
        assert_eq!(hex(&span.parent_span_id), SPAN);
    });
}

#[test]
fn every_try_tells_of_the_same_span() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|tables| {
            let mut route = forward("again", vec![to("", 1)]);
            route.retries = Some(proto::Retries {
                attempts: 2,
                retry_on: "5xx".into(),
                ..proto::Retries::default()
            });
            tables
                .upsert_virtual_service(&virtual_service(vec![route]))
                .unwrap();
        });
        let batches = collector(&bed, ALL).await;
        let mut client = bed.client("client").await;
        let answer = client.get("/fail").await;
        let parent = got(&answer, "traceparent").unwrap().to_owned();
        let all = spans(&bed, 1, batches).await;
        let [span] = &all[..] else { panic!("{all:?}") };
        assert_eq!(span.name, "GET again");
        assert!(parent.contains(&hex(&span.span_id)));
        assert_eq!(text(&span.attributes, "response_flags"), "URX");
    });
}

#[test]
fn without_a_collector_headers_pass_as_they_came() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let batches = collector(&bed, ALL).await;
        let mut client = bed.client("client").await;
        assert!(got(&client.get("/").await, "traceparent").is_some());
        // From one moment to the next.
        tell(&bed, None);
        let odd = [("traceparent", "what"), ("tracestate", "ever"), ("b3", "x")];
        let answer = client.with("/", &odd).await;
        for (name, value) in odd {
            assert_eq!(got(&answer, name), Some(value));
        }
        assert!(got(&client.get("/").await, "traceparent").is_none());
        drop(spans(&bed, 3, batches).await);
    });
}

#[test]
fn a_collector_that_says_nothing_holds_up_nobody() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let silent = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let silent = silent.await.unwrap();
        trace(&bed, silent.local_addr().unwrap().port(), ALL).await;
        let mut client = bed.client("client").await;
        for _ in 0..600 {
            assert_eq!(client.get("/").await.status, 200);
        }
        // The first batch is full, and waits for an answer.
        let (_held, _) = silent.accept().await.unwrap();
        for _ in 0..2_100 {
            assert_eq!(client.get("/").await.status, 200);
        }
        bed.worker.world.spans.finish(Duration::ZERO).await;
        bed.registry
            .register("isobar_spans", "", bed.worker.world.spans.outcomes());
        let page = bed.registry.encode();
        assert!(
            page.contains("isobar_spans_total{outcome=\"dropped\"}"),
            "{page}"
        );
        assert!(!page.contains("exported"), "{page}");
    });
}
