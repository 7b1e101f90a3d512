//! Kubernetes and Istio objects: reading, validating, watching and writing them.
