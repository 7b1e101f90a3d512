//! Lines for requests and connections, as the mesh's settings want them.

use isobar_proto::isobar::v1 as proto;
use serde_json::Value;

use crate::bed::*;

const HOST: &str = "x-host";

/// Tells the waypoint how lines are written.
fn tell(bed: &Bed, access_log: Option<proto::AccessLog>) {
    let own = proto::Waypoint {
        namespace: "default".into(),
        name: "wp".into(),
        traffic: proto::waypoint::Traffic::All.into(),
        hostname: WAYPOINT_HOST.into(),
        access_log,
        ..proto::Waypoint::default()
    };
    bed.tables(|tables| tables.set_waypoint(&own).unwrap());
}

fn text(text: &str) -> Option<proto::AccessLog> {
    Some(proto::AccessLog {
        text: text.to_owned(),
        ..proto::AccessLog::default()
    })
}

/// Asks until a line is as it should be: settings travel beside requests.
async fn until(bed: &Bed, is_so: impl Fn(&str) -> bool) -> String {
    let mut client = bed.client("client").await;
    loop {
        let answer = client.with("/a?b=c", &[(HOST, "say \"hi\"")]).await;
        assert_eq!(answer.status, 200);
        let line = bed.line().await;
        if is_so(&line) {
            return line;
        }
    }
}

#[test]
fn lines_are_written_as_the_settings_say_from_one_moment_to_the_next() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let log = bed.worker.access_log.clone();
        let feed = bed.worker.world.feed.clone();
        let followed = log.follow(feed, bed.scope.lifetime());
        bed.scope.spawn("lines", followed);
        until(&bed, |line| line.contains("\"GET /a?b=c HTTP/1.1\" 200")).await;

        let words = "code %RESPONSE_CODE% %REQ(:METHOD)% %REQ_WITHOUT_QUERY(:PATH)% \
                     %REQ(x-host)% %REQ(x-none?x-host):3% %REQ(x-none)% %DOWNSTREAM_PEER_URI_SAN%\n";
        tell(&bed, text(words));
        let line = until(&bed, |line| line.starts_with("code ")).await;
        let expect = "code 200 GET /a say \\\"hi\\\" say - \
                      spiffe://cluster.local/ns/default/sa/client";
        assert_eq!(line, expect);

        let field = |name: &str, text: &str| proto::LogField {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let json = vec![
            field("code", "%RESPONSE_CODE%"),
            field("ms", "%DURATION%"),
            field("host", "%REQ(x-host)%"),
            field("what", "%REQ(:METHOD)% %PROTOCOL%"),
            field("none", "%REQ(x-none)%"),
        ];
        tell(
            &bed,
            Some(proto::AccessLog {
                json,
                ..proto::AccessLog::default()
            }),
        );
        let line = until(&bed, |line| line.starts_with('{')).await;
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["code"], 200);
        assert!(line["ms"].is_u64());
        assert_eq!(line["host"], "say \"hi\"");
        assert_eq!(line["what"], "GET HTTP/1.1");
        assert!(line["none"].is_null());

        let off = proto::AccessLog {
            off: true,
            ..proto::AccessLog::default()
        };
        tell(&bed, Some(off));
        let mut client = bed.client("client").await;
        loop {
            assert_eq!(client.get("/").await.status, 200);
            if bed.lines.try_iter().count() == 0 {
                break;
            }
        }
        tell(&bed, None);
        until(&bed, |line| line.contains("\"GET /a?b=c HTTP/1.1\" 200")).await;
    });
}
