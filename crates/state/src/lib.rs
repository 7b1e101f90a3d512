//! The snapshot of the mesh and every L4 decision made on it; pure.
