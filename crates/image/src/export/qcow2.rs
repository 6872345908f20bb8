//! A disk in QEMU's own format, version 3 (`docs/interop/qcow2.txt` of QEMU): clusters of zeros are left out. Nothing in it is
//! compressed. The same disk gives the same bytes.

use std::io::{self, Write};

const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER: usize = 104;
/// Rows of eight bytes in one cluster, and reference counts of two bytes.
const ROWS: u64 = CLUSTER / 8;
const COUNTS: u64 = CLUSTER / 2;
/// The cluster is referred to once.
const COPIED: u64 = 1 << 63;

/// Finds out which clusters of a disk hold something, as the disk is written to it.
#[derive(Debug, Default)]
pub struct Map {
    used: Vec<bool>,
    size: u64,
}

impl Write for Map {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let rest = CLUSTER - self.size % CLUSTER;
        let part = &bytes[..bytes.len().min(rest as usize)];
        if rest == CLUSTER && !part.is_empty() {
            self.used.push(false);
        }
        if let Some(last) = self.used.last_mut().filter(|used| !**used) {
            *last = part.iter().any(|byte| *byte != 0);
        }
        self.size += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Map {
    fn n_used(&self) -> u64 {
        self.used.iter().filter(|used| **used).count() as u64
    }

    /// Clusters of header, first table, second tables, counts, in this order; then the data.
    fn layout(&self) -> Layout {
        let n_second = (self.used.len() as u64).div_ceil(ROWS);
        let n_first = (n_second * 8).div_ceil(CLUSTER).max(1);
        let (mut n_counts, mut n_count_table) = (1, 1);
        loop {
            let all = 1 + n_first + n_second + n_count_table + n_counts + self.n_used();
            let needed = all.div_ceil(COUNTS);
            let table = (needed * 8).div_ceil(CLUSTER);
            if needed <= n_counts && table <= n_count_table {
                break;
            }
            (n_counts, n_count_table) = (needed, table);
        }
        let (first, second) = (1, 1 + n_first);
        let count_table = second + n_second;
        let counts = count_table + n_count_table;
        Layout {
            first,
            second,
            n_second,
            count_table,
            n_count_table,
            counts,
            n_counts,
            data: counts + n_counts,
        }
    }

    /// Writes everything that stands before the data.
    fn head(&self, out: &mut impl Write) -> io::Result<()> {
        let layout = self.layout();
        let place = |cluster: u64| (cluster * CLUSTER).to_be_bytes();
        let mut header = b"QFI\xfb".to_vec();
        header.extend_from_slice(&3_u32.to_be_bytes());
        // No backing file.
        header.extend_from_slice(&[0; 12]);
        header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        header.extend_from_slice(&self.size.to_be_bytes());
        // Not encrypted.
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&(layout.n_second as u32).to_be_bytes());
        header.extend_from_slice(&place(layout.first));
        header.extend_from_slice(&place(layout.count_table));
        header.extend_from_slice(&(layout.n_count_table as u32).to_be_bytes());
        // No snapshots, no features.
        header.extend_from_slice(&[0; 12 + 24]);
        // Counts have two bytes.
        header.extend_from_slice(&4_u32.to_be_bytes());
        header.extend_from_slice(&(HEADER as u32).to_be_bytes());
        clusters(out, header, 1)?;
        let first =
            (0..layout.n_second).flat_map(|n| (((layout.second + n) * CLUSTER) | COPIED).to_be_bytes());
        clusters(out, first.collect(), layout.second - layout.first)?;
        let mut next = layout.data;
        let rows = self.used.iter().map(|used| {
            next += u64::from(*used);
            if *used { ((next - 1) * CLUSTER) | COPIED } else { 0 }
        });
        clusters(out, rows.flat_map(u64::to_be_bytes).collect(), layout.n_second)?;
        let table = (0..layout.n_counts).flat_map(|n| place(layout.counts + n));
        clusters(out, table.collect(), layout.n_count_table)?;
        let n_all = layout.data + self.n_used();
        clusters(out, (0..n_all).flat_map(|_| 1_u16.to_be_bytes()).collect(), layout.n_counts)
    }
}

struct Layout {
    first: u64,
    second: u64,
    n_second: u64,
    count_table: u64,
    n_count_table: u64,
    counts: u64,
    n_counts: u64,
    data: u64,
}

fn clusters(out: &mut impl Write, mut bytes: Vec<u8>, n: u64) -> io::Result<()> {
    bytes.resize((n * CLUSTER) as usize, 0);
    out.write_all(&bytes)
}

/// Takes a disk, and writes the file of it to `out`.
#[derive(Debug)]
pub struct Writer<'a, W> {
    map: &'a Map,
    out: W,
    at: u64,
}

impl<'a, W: Write> Writer<'a, W> {
    /// For the disk that `map` was made of.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(map: &'a Map, mut out: W) -> io::Result<Self> {
        map.head(&mut out)?;
        Ok(Self { map, out, at: 0 })
    }

    /// Fills up the last cluster.
    ///
    /// # Errors
    /// What `out` says, or that the disk was another one.
    pub fn finish(mut self) -> io::Result<W> {
        if self.at != self.map.size {
            return Err(io::Error::other("the disk has changed while it was written"));
        }
        if self.map.used.last() == Some(&true) {
            super::fat::zeros(&mut self.out, self.at.next_multiple_of(CLUSTER) - self.at)?;
        }
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min((CLUSTER - self.at % CLUSTER) as usize)];
        let changed = || io::Error::other("the disk has changed while it was written");
        let used = part.is_empty() || *self.map.used.get((self.at / CLUSTER) as usize).ok_or_else(changed)?;
        if used {
            self.out.write_all(part)?;
        }
        self.at += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
