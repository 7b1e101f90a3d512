//! A name server on loopback, and services whose endpoints it tells.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use isobar_proto::istio::workload as wire;
use isobar_runtime::LocalScope;
use isobar_waypoint::names::Names;

use super::{Bed, address, gateway};

/// Names and their addresses.
pub(crate) type Zone = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// Serves an empty zone.
pub(crate) fn serve(scope: &LocalScope) -> (Names, Zone) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    let names = Names::new(vec![socket.local_addr().unwrap()], false).with_this_machine();
    let zone = Zone::default();
    let known = Arc::clone(&zone);
    scope.spawn("name server", async move {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let answer = answer(&query, &known).to_vec().unwrap();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (names, zone)
}

fn answer(query: &Message, zone: &Zone) -> Message {
    let question = &query.queries[0];
    let name = question.name().to_ascii();
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.add_queries(query.queries.iter().cloned());
    let zone = zone.lock().unwrap();
    match zone.get(name.trim_end_matches('.')) {
        None => message.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            for ip in addresses {
                if let IpAddr::V4(ip) = ip {
                    let data = RData::A(A(*ip));
                    message.add_answer(Record::from_rdata(question.name().clone(), 30, data));
                }
            }
        }
    }
    message
}

impl Bed {
    /// Tells the mesh of a service that this waypoint serves, and of its endpoints.
    pub(crate) fn know(&self, service: wire::Service, endpoints: Vec<wire::Workload>) {
        let mut draft = self.worker.world.store.load().draft();
        let service = wire::Service {
            namespace: "default".into(),
            waypoint: Some(gateway()),
            ..service
        };
        let mut all = vec![wire::address::Type::Service(service)];
        all.extend(endpoints.into_iter().map(wire::address::Type::Workload));
        for one in all {
            draft.upsert_address(&address(one)).unwrap();
        }
        self.worker.world.store.publish(draft.finish());
    }
}
