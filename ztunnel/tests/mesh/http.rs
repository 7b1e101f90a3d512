//! The smallest client of the admin, metrics and readiness pages.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::{LIMIT, Place};

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// `None` if nobody answers.
pub(crate) async fn get(from: &Place, address: &str, path: &str) -> Option<Reply> {
    call(from, address, "GET", path, "").await
}

pub(crate) async fn call(
    from: &Place,
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
) -> Option<Reply> {
    let mut tcp = from.connect(address).await.ok()?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let mut text = String::new();
    let exchange = async {
        tcp.write_all(request.as_bytes()).await?;
        tcp.read_to_string(&mut text).await
    };
    tokio::time::timeout(LIMIT, exchange).await.ok()?.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Reply {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
