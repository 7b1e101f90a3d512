use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);
/// Far more than anything takes on a busy machine; a test that needs it has failed.
const LONG: Duration = Duration::from_secs(20);

/// Waits until `check` says `Ok`; its last complaint is the error.
///
/// # Errors
/// When that does not happen within 20 s.
pub async fn eventually<F, Fut, T>(what: &str, check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    Ok(eventually_within(what, LONG, check).await?.0)
}

/// As [`eventually`] with a limit of its own; also tells how long it took.
///
/// # Errors
/// When `check` does not say `Ok` within `limit`.
pub async fn eventually_within<F, Fut, T>(
    what: &str,
    limit: Duration,
    mut check: F,
) -> Result<(T, Duration)>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let start = Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok((value, start.elapsed())),
            Err(error) if start.elapsed() > limit => {
                bail!("{what}: not within {limit:?}: {error:#}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
