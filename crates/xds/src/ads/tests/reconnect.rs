//! How soon a client comes back.

use super::*;

#[tokio::test]
async fn a_server_that_answers_and_then_refuses_is_asked_ever_more_rarely() {
    let mut s = setup(vec![]).await;
    let begun = std::time::Instant::now();
    for _ in 0..6 {
        let mut stream = s.server.stream().await;
        first_requests(&mut stream, 2).await;
        stream.send(ADDRESS, "n1", vec![pod("a")]).await;
        stream.request().await;
        stream.fail(Status::invalid_argument("a type")).await;
    }
    // Half of 20, 40, 80, 160 and 320 ms, the least that the five waits between six streams may be.
    assert!(begun.elapsed() >= Duration::from_millis(310));
}
