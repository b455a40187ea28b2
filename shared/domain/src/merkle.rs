//! Merkle trees of RFC 6962 (SHA-256; a leaf is hashed after a 0x00 byte, an inner node after a 0x01 byte): the plan's
//! digest is the root of one, and the audit trail is one that only ever grows.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// A SHA-256 hash; text form is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; 32]);

/// Why a text is not a [`Hash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hex digits, got {0:?}")]
pub struct NotAHash(pub String);

impl Hash {
    /// The hash as bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = NotAHash;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        if s.len() != 64 {
            return Err(NotAHash(s.into()));
        }
        for (o, pair) in out.iter_mut().zip(s.as_bytes().chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *o = high << 4 | low,
                _ => return Err(NotAHash(s.into())),
            }
        }
        Ok(Hash(out))
    }
}

impl TryFrom<String> for Hash {
    type Error = NotAHash;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Hash> for String {
    fn from(h: Hash) -> String {
        h.to_string()
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = NotAHash;
    fn try_from(b: &[u8]) -> Result<Self, Self::Error> {
        b.try_into().map(Hash).map_err(|_| NotAHash(format!("{} bytes", b.len())))
    }
}

/// Hash of a leaf's content.
pub fn leaf_hash(content: &[u8]) -> Hash {
    Hash(Sha256::new().chain_update([0]).chain_update(content).finalize().into())
}

/// Hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Hash(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// Root of the tree without leaves.
pub fn empty_root() -> Hash {
    Hash(Sha256::digest([]).into())
}

/// Root over leaf hashes.
pub fn root(leaves: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|l| frontier.append(*l));
    frontier.root()
}

/// All nodes of a tree, built once in O(n), so that each proof costs O(log n).
#[derive(Debug, Clone)]
pub struct Tree {
    /// `levels[0]` are the leaves; a node without a sibling moves up as it is.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Builds the tree over leaf hashes.
    pub fn new(leaves: Vec<Hash>) -> Self {
        let mut levels = vec![leaves];
        while let Some(last) = levels.last().filter(|l| l.len() > 1) {
            let next = last
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => node_hash(left, right),
                    alone => alone[0],
                })
                .collect();
            levels.push(next);
        }
        Tree { levels }
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.levels[0].len() as u64
    }

    /// The root; of an empty tree the hash of nothing.
    pub fn root(&self) -> Hash {
        self.levels.last().and_then(|l| l.first()).copied().unwrap_or_else(empty_root)
    }

    /// The inclusion proof of leaf `index`, lowest sibling first; `None` if there is no such leaf.
    pub fn proof(&self, index: u64) -> Option<Vec<Hash>> {
        if index >= self.size() {
            return None;
        }
        let at = index as usize;
        let siblings = self.levels.iter().enumerate().filter_map(|(k, level)| level.get((at >> k) ^ 1)).copied();
        Some(siblings.collect())
    }

    /// The proof that this tree continues its own first `size` leaves; `None` if it has fewer.
    pub fn consistency_proof(&self, size: u64) -> Option<Vec<Hash>> {
        if size > self.size() {
            return None;
        }
        let mut out = Vec::new();
        if size > 0 {
            self.subproof(size, 0, self.size(), true, &mut out);
        }
        Some(out)
    }

    /// SUBPROOF of RFC 6962, 2.1.2, over the `size` leaves from `start` on.
    fn subproof(&self, m: u64, start: u64, size: u64, known: bool, out: &mut Vec<Hash>) {
        if m == size {
            if !known {
                out.push(self.subtree(start, size));
            }
            return;
        }
        let k = 1 << (size - 1).ilog2();
        if m <= k {
            self.subproof(m, start, k, known, out);
            out.push(self.subtree(start + k, size - k));
        } else {
            self.subproof(m - k, start + k, size - k, false, out);
            out.push(self.subtree(start, k));
        }
    }

    /// Root of a subtree of the recursion above: full, or ending where the tree ends, so it is one stored node.
    fn subtree(&self, start: u64, size: u64) -> Hash {
        let level = size.next_power_of_two().ilog2();
        self.levels[level as usize][(start >> level) as usize]
    }
}

/// Whether `proof` shows that `leaf` (a leaf hash) is number `index` of the tree of `size` leaves under `root`.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut r) = (index, size - 1, *leaf);
    for p in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            r = node_hash(p, &r);
            // A node without a sibling moved up: skip the levels at which it had none.
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            r = node_hash(&r, p);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && r == *root
}

/// Whether `proof` shows that the tree of `size` leaves under `root` begins with the one of `old_size` under `old_root`.
pub fn verify_consistency(old_size: u64, old_root: &Hash, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if old_size > size {
        return false;
    }
    if old_size == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    if old_size == size {
        return proof.is_empty() && old_root == root;
    }
    // RFC 9162, 2.1.4.2: a full old tree is itself the first node of the proof.
    let mut nodes = proof.iter();
    let first = if old_size.is_power_of_two() { Some(old_root) } else { nodes.next() };
    let Some(first) = first else { return false };
    let (mut at, mut last) = (old_size - 1, size - 1);
    let full = at.trailing_ones();
    at >>= full;
    last >>= full;
    let (mut old, mut new) = (*first, *first);
    for c in nodes {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old = node_hash(c, &old);
            new = node_hash(c, &new);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            new = node_hash(&new, c);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && old == *old_root && new == *root
}

/// The right edge of a growing tree: the roots of its full subtrees, largest first. Enough to append and to know the root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FrontierText", into = "FrontierText")]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

#[derive(Serialize, Deserialize)]
struct FrontierText {
    size: u64,
    peaks: Vec<Hash>,
}

impl From<Frontier> for FrontierText {
    fn from(f: Frontier) -> Self {
        FrontierText { size: f.size, peaks: f.peaks }
    }
}

impl TryFrom<FrontierText> for Frontier {
    type Error = String;
    fn try_from(t: FrontierText) -> Result<Self, String> {
        let want = t.size.count_ones() as usize;
        if t.peaks.len() == want {
            Ok(Frontier { size: t.size, peaks: t.peaks })
        } else {
            Err(format!("a frontier of size {} has {want} peaks, got {}", t.size, t.peaks.len()))
        }
    }
}

impl Frontier {
    /// Adds a leaf hash; its index is the size before.
    pub fn append(&mut self, leaf: Hash) {
        let mut node = leaf;
        // Every set low bit is a full subtree of that size, which the new leaf completes to the next one.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root; of an empty tree the hash of nothing.
    pub fn root(&self) -> Hash {
        self.peaks.iter().rev().copied().reduce(|right, left| node_hash(&left, &right)).unwrap_or_else(empty_root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(s: &str) -> Vec<u8> {
        (0..s.len() / 2).map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    /// The leaves and roots every Certificate Transparency implementation is tested with.
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn known() -> Vec<Hash> {
        LEAVES.iter().map(|l| leaf_hash(&hex(l))).collect()
    }
    fn some(n: usize) -> Vec<Hash> {
        (0..n).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    #[test]
    fn known_roots() {
        let leaves = known();
        for (n, want) in ROOTS.iter().enumerate() {
            assert_eq!(root(&leaves[..n]).to_string(), *want, "{n} leaves");
            assert_eq!(Tree::new(leaves[..n].to_vec()).root().to_string(), *want, "{n} leaves");
        }
    }

    #[test]
    fn known_inclusion_proofs() {
        let leaves = known();
        let cases: [(u64, usize, &[&str]); 4] = [
            (0, 1, &[]),
            (
                0,
                8,
                &[
                    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
                ],
            ),
            (
                5,
                8,
                &[
                    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
                ],
            ),
            (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        ];
        for (index, size, want) in cases {
            let proof = Tree::new(leaves[..size].to_vec()).proof(index).expect("a leaf");
            assert_eq!(proof.iter().map(Hash::to_string).collect::<Vec<_>>(), want, "leaf {index} of {size}");
        }
    }

    #[test]
    fn known_consistency_proofs() {
        let leaves = known();
        let cases: [(u64, usize, &[&str]); 4] = [
            (1, 1, &[]),
            (
                1,
                8,
                &[
                    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
                ],
            ),
            (
                6,
                8,
                &[
                    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
                ],
            ),
            (
                2,
                5,
                &[
                    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                ],
            ),
        ];
        for (old, size, want) in cases {
            let proof = Tree::new(leaves[..size].to_vec()).consistency_proof(old).expect("not larger");
            assert_eq!(proof.iter().map(Hash::to_string).collect::<Vec<_>>(), want, "{old} of {size}");
        }
    }

    #[test]
    fn every_proof_of_small_trees_verifies_and_no_changed_one_does() {
        for size in 0..=33_usize {
            let leaves = some(size);
            let tree = Tree::new(leaves.clone());
            let root = tree.root();
            assert!(tree.proof(size as u64).is_none());
            assert!(tree.consistency_proof(size as u64 + 1).is_none());
            for (i, leaf) in leaves.iter().enumerate() {
                let (i, n) = (i as u64, size as u64);
                let proof = tree.proof(i).expect("a leaf");
                assert!(verify_inclusion(leaf, i, n, &proof, &root), "leaf {i} of {n}");
                let other = leaf_hash(b"other");
                assert!(!verify_inclusion(&other, i, n, &proof, &root));
                for wrong in (0..n).filter(|w| *w != i) {
                    assert!(!verify_inclusion(leaf, wrong, n, &proof, &root), "leaf {i} passed as {wrong}");
                }
                assert!(!verify_inclusion(leaf, i, n, &[proof.as_slice(), &[other]].concat(), &root));
                for cut in 0..proof.len() {
                    assert!(!verify_inclusion(leaf, i, n, &proof[..cut], &root));
                    let mut bad = proof.clone();
                    bad[cut] = other;
                    assert!(!verify_inclusion(leaf, i, n, &bad, &root));
                }
            }
            for old in 0..=size {
                let old_root = super::root(&leaves[..old]);
                let (m, n) = (old as u64, size as u64);
                let proof = tree.consistency_proof(m).expect("not larger");
                assert!(verify_consistency(m, &old_root, n, &root, &proof), "{m} to {n}");
                let mut forged = leaves[..old].to_vec();
                if let Some(first) = forged.first_mut() {
                    *first = leaf_hash(b"forged");
                    assert!(!verify_consistency(m, &super::root(&forged), n, &root, &proof), "{m} to {n}");
                }
                for at in 0..proof.len() {
                    let mut bad = proof.clone();
                    bad[at] = leaf_hash(b"forged");
                    assert!(!verify_consistency(m, &old_root, n, &root, &bad));
                    assert!(!verify_consistency(m, &old_root, n, &root, &proof[..at]));
                }
                assert!(!verify_consistency(m, &old_root, n, &root, &[proof.as_slice(), &[root]].concat()));
            }
        }
    }

    proptest! {
        #[test]
        fn the_frontier_agrees_with_the_tree_and_survives_storage(n in 0usize..600, stop in 0usize..600) {
            let leaves = some(n);
            let mut frontier = Frontier::default();
            for (i, leaf) in leaves.iter().enumerate() {
                if i == stop {
                    let text = serde_json::to_string(&frontier).expect("writes");
                    frontier = serde_json::from_str(&text).expect("reads");
                }
                frontier.append(*leaf);
            }
            prop_assert_eq!(frontier.size(), n as u64);
            prop_assert_eq!(frontier.root(), Tree::new(leaves).root());
        }

        #[test]
        fn hashes_survive_text(bytes in any::<[u8; 32]>()) {
            let h = Hash(bytes);
            prop_assert_eq!(h.to_string().parse::<Hash>(), Ok(h));
            prop_assert!(h.to_string().to_uppercase().parse::<Hash>().is_err() || !h.to_string().contains(|c: char| c.is_alphabetic()));
        }
    }

    #[test]
    fn what_is_not_a_hash_or_frontier_is_refused() {
        for bad in ["", "zz", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
            assert!(bad.parse::<Hash>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<Frontier>(r#"{"size":3,"peaks":[]}"#).is_err());
        assert!(serde_json::from_str::<Frontier>(r#"{"size":0,"peaks":[]}"#).is_ok());
    }
}
