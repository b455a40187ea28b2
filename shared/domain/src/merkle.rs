//! RFC 6962 Merkle tree over byte leaves: root, proofs, and a compact frontier to append to.
