//! End-to-end suites in network namespaces.
