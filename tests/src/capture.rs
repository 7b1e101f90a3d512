use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::{Exec, Lab, Target};
use isobar_net::NetNs;
use isobar_runtime::Scope;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::wait::eventually;

/// Last packet of every recording.
const END: &[u8] = b"end of the recording";

/// Packets recorded on the network between the nodes.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    lab: Lab,
    scope: Scope,
}

impl Capture {
    /// Starts to record everything on the bridge; returns once recording has begun.
    ///
    /// # Errors
    /// When the recorder cannot be started.
    pub async fn start(lab: &Lab, folder: &Path) -> Result<Self> {
        let file = folder.join("capture.pcap");
        let (reader, writer) = std::io::pipe()?;
        let exec = Exec {
            target: Target::Outer,
            argv: [
                "tcpdump",
                "-i",
                "br0",
                "--immediate-mode",
                "-U",
                "-s",
                "0",
                "-w",
            ]
            .into_iter()
            .map(str::to_owned)
            .chain([file.to_string_lossy().into_owned()])
            .collect(),
            env: Vec::new(),
            stdio: [
                std::fs::File::open("/dev/null")?.into(),
                std::fs::File::create("/dev/null")?.into(),
                writer.into(),
            ],
        };
        let scope = Scope::new("capture");
        let recorder = lab.clone();
        scope.spawn("tcpdump", async move {
            // Ended by dropping the request, which kills the recorder.
            let _ = recorder.exec(exec).await;
        });
        let reader = tokio::net::unix::pipe::Receiver::from_file(std::fs::File::from(
            std::os::fd::OwnedFd::from(reader),
        ))?;
        let mut lines = BufReader::new(reader).lines();
        let begun = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains("listening on") {
                    return Ok(());
                }
            }
            anyhow::bail!("the recorder ended at once")
        };
        tokio::time::timeout(Duration::from_secs(10), begun)
            .await
            .context("the recorder says nothing")??;
        Ok(Self {
            file,
            lab: lab.clone(),
            scope,
        })
    }

    /// Ends the recording once everything sent before has been written: a packet of our own comes
    /// last.
    ///
    /// # Errors
    /// When that packet does not appear.
    pub async fn stop(self) -> Result<Recorded> {
        let outer = NetNs::from_fd(self.lab.netns(Target::Outer).await?)?;
        let socket = outer.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        eventually("the end of the recording is written", async || {
            socket.send_to(END, (Ipv4Addr::new(172, 30, 0, 11), 9))?;
            let bytes = std::fs::read(&self.file)?;
            ensure!(
                bytes.windows(END.len()).any(|w| w == END),
                "{} bytes so far",
                bytes.len()
            );
            Ok(())
        })
        .await?;
        self.scope.shutdown(Duration::ZERO).await;
        Ok(Recorded { file: self.file })
    }
}

/// A finished recording.
#[derive(Debug)]
pub struct Recorded {
    file: PathBuf,
}

impl Recorded {
    /// Raw bytes of the recording.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.file)?)
    }

    /// Runs the packet dissector over it: the given fields of the packets that pass `filter`, a
    /// line each, separated by tabs. `keys`: a key log to decrypt with.
    ///
    /// # Errors
    /// When the dissector fails.
    pub async fn fields(
        &self,
        filter: &str,
        fields: &[&str],
        keys: Option<&Path>,
    ) -> Result<Vec<String>> {
        let mut command = tokio::process::Command::new("tshark");
        command
            .arg("-r")
            .arg(&self.file)
            .args(["-Y", filter, "-T", "fields"]);
        command.args([
            "-d",
            "tcp.port==15008,tls",
            "-o",
            "tcp.desegment_tcp_streams:TRUE",
        ]);
        for field in fields {
            command.args(["-e", field]);
        }
        if let Some(keys) = keys {
            command
                .arg("-o")
                .arg(format!("tls.keylog_file:{}", keys.display()));
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .await
            .context("running tshark")?;
        ensure!(
            output.status.success(),
            "tshark: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}
