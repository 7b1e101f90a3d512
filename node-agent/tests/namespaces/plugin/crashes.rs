//! Whatever dies, and between whichever steps: a pod that may start is in the mesh.

use std::path::Path;
use std::time::Duration;

use isobar_runtime::Scope;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::node::uid;
use super::{Attachment, Node};
use crate::network::{PEER, Place, bridge};

/// Where the agent dies, and whether the pod may start all the same.
const AGENT: [(&str, Outcome); 10] = [
    ("before-capture-off", Outcome::Fails),
    ("after-capture-off", Outcome::Fails),
    ("before-announce", Outcome::Fails),
    ("after-announce", Outcome::Fails),
    ("before-capture-on", Outcome::Fails),
    ("after-capture-on", Outcome::Fails),
    // The plugin is answered beside these.
    ("before-annotate", Outcome::Either),
    ("after-annotate", Outcome::Either),
    ("before-answer", Outcome::Fails),
    ("after-answer", Outcome::Either),
];
const PLUGIN: [&str; 4] = [
    "before-record",
    "after-record",
    "after-answer",
    "before-print",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fails,
    Either,
}

pub(crate) async fn all() {
    bridge();
    let peer = Place::new("peer", PEER);
    let applications = Scope::new("applications");
    peer.serve(&applications, 9090);
    let mut number = 10;
    for (point, outcome) in AGENT {
        number += 1;
        agent_dies(number, point, outcome).await;
    }
    for point in PLUGIN {
        number += 1;
        plugin_dies(number, point).await;
    }
    replaced(number + 1).await;
    cut_words(number + 2).await;
    applications.shutdown(Duration::ZERO).await;
}

fn pod(node: &Node, number: usize) -> (String, Place, Attachment) {
    let (name, ip) = (format!("p{number}"), format!("10.0.0.{number}"));
    let place = Place::new(&name, &ip);
    node.pod(&name, &uid(number), &json!({}), None);
    let attachment = Node::attachment(&name, &uid(number), &place, &ip);
    (name, place, attachment)
}

async fn agent_dies(number: usize, point: &str, outcome: Outcome) {
    let mut node = Node::new();
    let (name, place, attachment) = pod(&node, number);
    node.start(point).await;
    let impatient = Attachment {
        wait: 1.0,
        ..attachment.clone()
    };
    let said = node.call("ADD", &impatient).await;
    node.died().await;
    if said.good {
        assert_eq!(outcome, Outcome::Either, "{point}: {}", node.log());
        assert_eq!(said.value(), attachment.previous());
        assert!(
            node.is_captured(&place).await,
            "{point}: a plain pod started"
        );
    } else {
        assert_eq!(said.code(), 11, "{point}");
    }
    if node.is_advertised(&name) {
        assert!(
            node.is_captured(&place).await,
            "{point}: a plain pod is advertised"
        );
    }
    // The runtime takes the container down and makes another; what follows goes as if nothing were.
    assert!(node.call("DEL", &attachment).await.good);
    node.disconnect().await;
    node.start("").await;
    let again = Attachment {
        container: "the-next".to_owned(),
        ..attachment
    };
    let said = node.call("ADD", &again).await;
    assert!(said.good, "{point}: {said:?}\n{}", node.log());
    assert!(node.is_captured(&place).await, "{point}");
    node.stop(false).await;
    node.disconnect().await;
}

async fn plugin_dies(number: usize, point: &str) {
    let mut node = Node::new();
    let (_, place, attachment) = pod(&node, number);
    node.start("").await;
    let dying = Attachment {
        crash: point.to_owned(),
        ..attachment.clone()
    };
    let said = node.call("ADD", &dying).await;
    assert!(said.killed && said.text.is_empty(), "{point}: {said:?}");
    assert!(node.call("DEL", &attachment).await.good);
    assert!(node.records().is_empty());
    let said = node.call("ADD", &attachment).await;
    assert!(said.good, "{point}: {said:?}\n{}", node.log());
    assert!(node.is_captured(&place).await, "{point}");
    node.stop(false).await;
    node.disconnect().await;
}

/// While one agent gives way to the next, a pod that comes waits, and starts protected.
async fn replaced(number: usize) {
    let mut node = Node::new();
    let (_, place, attachment) = pod(&node, number);
    node.start("").await;
    node.stop(true).await;
    node.disconnect().await;
    let run_dir = node.run_dir();
    let config = attachment.config(&run_dir);
    let (said, ()) = tokio::join!(attachment.call("ADD", &config), node.start(""));
    assert!(said.good, "{said:?}\n{}", node.log());
    assert!(node.is_captured(&place).await);
    // With rules in place from before, nothing is captured less while nobody looks after them.
    node.stop(true).await;
    assert!(node.is_captured(&place).await);
    node.disconnect().await;
}

/// Of question and answer only whole ones count, wherever the connection between them breaks.
async fn cut_words(number: usize) {
    let mut node = Node::new();
    let (_, place, attachment) = pod(&node, number);
    node.start("").await;
    assert!(node.call("ADD", &attachment).await.good, "{}", node.log());
    let aside = node.aside("cut");
    let agent = node.run_dir().join("agent.sock");
    let hasty = Attachment {
        wait: 0.1,
        ..attachment
    };
    let config = hasty.config(&aside);
    let (mut asked, mut told) = (0, 0);
    loop {
        let socket = aside.join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (said, broken) = tokio::join!(
            hasty.call("ADD", &config),
            between(listener, &agent, asked, told)
        );
        std::fs::remove_file(socket).unwrap();
        if said.good {
            assert_eq!(broken, Broken::Nothing, "{said:?}");
            break;
        }
        assert_eq!(said.code(), 11, "{broken:?}: {said:?}");
        match broken {
            Broken::Question => asked += 1,
            Broken::Answer => told += 1,
            Broken::Nothing => panic!("a whole answer did not count: {said:?}\n{}", node.log()),
        }
        assert!(asked + told < 4096, "no end");
    }
    assert!(asked > 100 && told > 30, "{asked} {told}");
    assert!(node.is_captured(&place).await);
    node.stop(false).await;
    node.disconnect().await;
}

/// What did not come through whole.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    Question,
    Answer,
    Nothing,
}

/// Stands between plugin and agent for one question, and breaks off after `asked` bytes of it, or
/// else after `told` bytes of the answer.
async fn between(listener: UnixListener, agent: &Path, asked: usize, told: usize) -> Broken {
    let (mut plugin, _) = listener.accept().await.unwrap();
    let mut agent = UnixStream::connect(agent).await.unwrap();
    let question = line(&mut plugin).await;
    if asked < question.len() {
        agent.write_all(&question[..asked]).await.unwrap();
        return Broken::Question;
    }
    agent.write_all(&question).await.unwrap();
    let answer = line(&mut agent).await;
    let length = told.min(answer.len());
    plugin.write_all(&answer[..length]).await.unwrap();
    if length < answer.len() {
        Broken::Answer
    } else {
        Broken::Nothing
    }
}

async fn line(stream: &mut UnixStream) -> Vec<u8> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') && stream.read(&mut byte).await.unwrap() > 0 {
        line.push(byte[0]);
    }
    line
}
