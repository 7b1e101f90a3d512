use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use isobar_net::{PacketError, SeqPacket};
use isobar_proto::istio::workload::zds::{
    AddWorkload, DelWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_request::Payload, workload_response,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{AnnounceError, Announcement, Command, DEADLINE, PACKET_MAX, Proxy, QUEUE, Zds};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("it did not {0} within {DEADLINE:?}")]
    Late(&'static str),
    #[error("it closed the connection")]
    Closed,
    #[error("{0}")]
    Protocol(String),
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// One proxy, from hello to end.
pub(super) async fn run(zds: Zds, socket: SeqPacket) {
    let pid = socket.peer_credentials().ok().map(|peer| peer.pid);
    if let Err(error) = hello(&socket).await {
        tracing::warn!(?pid, %error, "a node proxy did not say hello");
        return;
    }
    let (mut session, pods) = Session::register(&zds, socket, pid);
    let connection = session.id;
    tracing::info!(connection, ?pid, pods = pods.len(), "node proxy connected");
    let error = match session.snapshot(pods).await {
        Ok(()) => session.follow().await,
        Err(error) => error,
    };
    match error {
        SessionError::Closed => tracing::info!(connection, "node proxy disconnected"),
        error => tracing::warn!(connection, %error, "node proxy dropped"),
    }
}

async fn hello(socket: &SeqPacket) -> Result<(), SessionError> {
    let mut buffer = [0; PACKET_MAX];
    let packet = timeout(DEADLINE, socket.recv(&mut buffer))
        .await
        .map_err(|_| SessionError::Late("say hello"))??
        .ok_or(SessionError::Closed)?;
    let hello = ZdsHello::decode(&buffer[..packet.len])
        .map_err(|error| SessionError::Protocol(format!("its hello is none: {error}")))?;
    if hello.version() != Version::V1 {
        let version = hello.version;
        return Err(SessionError::Protocol(format!(
            "it speaks version {version}; version 1 is known here"
        )));
    }
    Ok(())
}

/// A proxy that said hello. Leaves the list of proxies when dropped.
struct Session {
    zds: Zds,
    socket: SeqPacket,
    commands: mpsc::Receiver<Command>,
    id: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.zds.lock().proxies.remove(&self.id);
        self.zds.bump();
    }
}

impl Session {
    /// Makes the proxy the newest, in the same moment in which its snapshot is taken.
    fn register(zds: &Zds, socket: SeqPacket, pid: Option<i32>) -> (Self, Vec<Announcement>) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let mut state = zds.lock();
        state.connections += 1;
        let id = state.connections;
        state.proxies.insert(
            id,
            Proxy {
                commands: sender,
                accepted: BTreeSet::new(),
                synced: false,
                pid,
            },
        );
        let pods = state.pods.values().cloned().collect();
        drop(state);
        let session = Self {
            zds: zds.clone(),
            socket,
            commands,
            id,
        };
        (session, pods)
    }

    async fn snapshot(&mut self, pods: Vec<Announcement>) -> Result<(), SessionError> {
        for pod in pods {
            if let Err(error) = self.add(&pod).await? {
                tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %error,
                    "a pod of the snapshot was not taken");
            }
        }
        let end = Payload::SnapshotSent(SnapshotSent {});
        if let Some(error) = self.request(end, &[]).await? {
            tracing::warn!(error, "the end of the snapshot was answered with an error");
        }
        if let Some(proxy) = self.zds.lock().proxies.get_mut(&self.id) {
            proxy.synced = true;
        }
        self.zds.bump();
        Ok(())
    }

    /// Serves commands until something ends the session.
    async fn follow(&mut self) -> SessionError {
        let mut buffer = [0; PACKET_MAX];
        loop {
            let command = tokio::select! {
                command = self.commands.recv() => command,
                packet = self.socket.recv(&mut buffer) => return match packet {
                    Ok(None) => SessionError::Closed,
                    Ok(Some(_)) => SessionError::Protocol("it spoke without being asked".into()),
                    Err(error) => error.into(),
                },
            };
            let done = match command {
                None => return SessionError::Closed,
                Some(Command::Add(pod, answer)) => self.add(&pod).await.map(|result| {
                    // Nobody may be waiting any more.
                    let _ = answer.send(result);
                }),
                Some(Command::Delete(uid, answer)) => self.delete(uid).await.map(|()| {
                    let _ = answer.send(());
                }),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn add(&self, pod: &Announcement) -> Result<Result<(), AnnounceError>, SessionError> {
        let payload = Payload::Add(AddWorkload {
            uid: pod.uid.clone(),
            workload_info: Some(WorkloadInfo {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
            }),
        });
        let refused = self.request(payload, &[pod.netns.as_fd()]).await?;
        if let Some(error) = refused {
            return Ok(Err(AnnounceError::Refused(error)));
        }
        let mut state = self.zds.lock();
        let current = state
            .pods
            .get(&pod.uid)
            .is_some_and(|known| known.netns.id() == pod.netns.id());
        if let Some(proxy) = state.proxies.get_mut(&self.id)
            && current
        {
            proxy.accepted.insert(pod.uid.clone());
        }
        Ok(Ok(()))
    }

    async fn delete(&self, uid: String) -> Result<(), SessionError> {
        let payload = Payload::Del(DelWorkload { uid: uid.clone() });
        if let Some(error) = self.request(payload, &[]).await? {
            tracing::warn!(uid, error, "a removal was answered with an error");
        }
        if let Some(proxy) = self.zds.lock().proxies.get_mut(&self.id) {
            proxy.accepted.remove(&uid);
        }
        Ok(())
    }

    /// One request and its answer: the error text, if any. Answers carry no number, so a late one
    /// ends the session.
    async fn request(
        &self,
        payload: Payload,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<String>, SessionError> {
        let message = WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec();
        if message.len() > PACKET_MAX {
            return Ok(Some(format!(
                "a message of {} bytes is too long",
                message.len()
            )));
        }
        timeout(DEADLINE, self.socket.send(&message, fds))
            .await
            .map_err(|_| SessionError::Late("take a request"))??;
        let mut buffer = [0; PACKET_MAX];
        let packet = timeout(DEADLINE, self.socket.recv(&mut buffer))
            .await
            .map_err(|_| SessionError::Late("answer"))??
            .ok_or(SessionError::Closed)?;
        let response = WorkloadResponse::decode(&buffer[..packet.len])
            .map_err(|error| SessionError::Protocol(format!("its answer is none: {error}")))?;
        match response.payload {
            Some(workload_response::Payload::Ack(ack)) => {
                Ok((!ack.error.is_empty()).then_some(ack.error))
            }
            None => Err(SessionError::Protocol("its answer is empty".into())),
        }
    }
}
