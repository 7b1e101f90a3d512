//! What a client may ask of the control plane's memory.

/// Names of resources, and the bytes of their text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

impl Names {
    /// One more.
    pub(super) const fn add(&mut self, name: &str) {
        self.count += 1;
        self.bytes += name.len();
    }

    /// One that was added is gone.
    pub(super) const fn remove(&mut self, name: &str) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(name.len());
    }

    /// True where neither is more than in `most`.
    pub(super) const fn is_within(self, most: Self) -> bool {
        self.count <= most.count && self.bytes <= most.bytes
    }
}

impl std::iter::Sum for Names {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            count: sum.count + one.count,
            bytes: sum.bytes + one.bytes,
        })
    }
}

/// What a client may ask of the control plane's memory. The first request after a reconnect names
/// every resource its sender holds, with its version: 80 bytes or so each. Whoever has an account in
/// some namespace has a token, and may have one of a waypoint there: only node proxies, which the
/// mesh's owner runs, are trusted with more than theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Longest request, in bytes.
    pub(super) longest: usize,
    /// Names in one request.
    pub(super) names: usize,
    /// Names that are kept of one stream, of all kinds together and whether they exist or not.
    pub(super) kept: Names,
    /// Streams of one pod, or of one account without pods, at a time.
    pub(super) streams: usize,
    /// Streams of all accounts and pods of one namespace that are allowed no more than this.
    pub(super) of_namespace: usize,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

impl Allowance {
    pub(crate) const NODE: Self = Self {
        longest: 32 * MIB,
        names: 400_000,
        kept: Names {
            count: 1_000_000,
            bytes: 128 * MIB,
        },
        streams: usize::MAX,
        of_namespace: usize::MAX,
    };
    pub(super) const WAYPOINT: Self = Self {
        longest: 8 * MIB,
        names: 100_000,
        kept: Names {
            count: 200_000,
            bytes: 16 * MIB,
        },
        streams: 8,
        of_namespace: usize::MAX,
    };
    /// A waypoint whose Gateway has not been read yet among them: it comes again.
    pub(super) const OTHER: Self = Self {
        longest: 256 * KIB,
        names: 4_096,
        kept: Names {
            count: 4_096,
            bytes: 512 * KIB,
        },
        streams: 8,
        of_namespace: 64,
    };

    /// That of a node proxy, of a waypoint, or of anybody else.
    pub(super) const fn of(node: bool, waypoint: bool) -> Self {
        if node {
            Self::NODE
        } else if waypoint {
            Self::WAYPOINT
        } else {
            Self::OTHER
        }
    }
}
