//! Delta discovery client, certificate client and the snapshot store they feed.
