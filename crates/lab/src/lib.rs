//! A whole mesh on one machine: nodes and pods as network namespaces.
