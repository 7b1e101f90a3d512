//! Metrics, logs, readiness and the admin server.
