//! The scenery of the lessons, with a real API server as the source of objects.

#[path = "../mesh/fixture.rs"]
#[expect(dead_code, reason = "it is there for other suites too")]
mod mesh;

use anyhow::Result;
use isobar_tests::{kube_tools, over_api_server};

pub(crate) use mesh::{HTTPBIN, ambient, client, hello, other, server, shop};

/// Runs an async test whose meshes have an API server.
pub(crate) fn run<F: Future<Output = Result<()>>>(test: F) {
    crate::alone(async {
        over_api_server(kube_tools()?);
        test.await
    });
}
