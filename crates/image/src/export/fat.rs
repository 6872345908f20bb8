//! The EFI system partition: a FAT32 file system with one program at the path where firmware looks for one
//! (`\EFI\BOOT\BOOTX64.EFI`). The same program gives the same bytes.
//!
//! Format: "FAT32 File System Specification" 1.03, Microsoft, checked with `fsck.fat` in a test.

use std::io::{self, Write};

/// Bytes of a sector, which is a cluster as well: more would make the smallest FAT32 file system larger.
pub const SECTOR: u64 = 512;
/// Sectors before the first table, and how many tables there are.
const RESERVED: u64 = 32;
const TABLES: u64 = 2;
/// With fewer clusters it would be FAT16.
const CLUSTERS_MIN: u64 = 65_525;
/// Clusters that may be used, less than the format allows.
const CLUSTERS_MAX: u64 = 0x0FFF_0000;
const FIRST_CLUSTER: u32 = 2;
const END: u32 = 0x0FFF_FFFF;
const IS_DIR: u8 = 0x10;
const IS_READ_ONLY: u8 = 0x01;
/// 1 January 1980, the first day of the format.
const FIRST_DAY: u16 = 1 << 5 | 1;

/// A file system with one program.
#[derive(Debug)]
pub struct EfiPartition<'a> {
    program: &'a [u8],
    /// The serial number of the volume.
    serial: u32,
    n_clusters: u64,
    table_sectors: u64,
}

impl<'a> EfiPartition<'a> {
    /// For `program`; none if it is too large for the format.
    pub fn new(program: &'a [u8], serial: u32) -> Option<Self> {
        // Root, EFI and BOOT take a cluster each; a few more are free, so that a repair has room.
        let used = 3 + (program.len() as u64).div_ceil(SECTOR);
        let n_clusters = (used + 16).max(CLUSTERS_MIN + 16);
        let table_sectors = ((n_clusters + 2) * 4).div_ceil(SECTOR);
        let fits = u32::try_from(program.len()).is_ok() && n_clusters < CLUSTERS_MAX;
        fits.then_some(Self { program, serial, n_clusters, table_sectors })
    }

    /// Bytes that [`EfiPartition::write`] writes.
    pub fn size(&self) -> u64 {
        (RESERVED + TABLES * self.table_sectors + self.n_clusters) * SECTOR
    }

    /// Writes it.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut reserved = vec![0; (RESERVED * SECTOR) as usize];
        let sector = SECTOR as usize;
        for at in [0, 6 * sector] {
            reserved[at..at + sector].copy_from_slice(&self.boot_sector());
            reserved[at + sector..at + 2 * sector].copy_from_slice(&self.information());
        }
        out.write_all(&reserved)?;
        let table = self.table();
        for _ in 0..TABLES {
            out.write_all(&table)?;
        }
        // Cluster 2 is the root, 3 EFI, 4 BOOT, from 5 on the program.
        let up = |cluster| [entry(b".          ", IS_DIR, 3, 0), entry(b"..         ", IS_DIR, cluster, 0)];
        let mut root_dir = vec![entry(b"EFI        ", IS_DIR, 3, 0)];
        let mut efi_dir = up(0).to_vec();
        efi_dir.push(entry(b"BOOT       ", IS_DIR, 4, 0));
        let mut boot_dir = vec![entry(b".          ", IS_DIR, 4, 0), entry(b"..         ", IS_DIR, 3, 0)];
        let first = if self.program.is_empty() { 0 } else { 5 };
        boot_dir.push(entry(b"BOOTX64 EFI", IS_READ_ONLY, first, self.program.len() as u32));
        for dir in [&mut root_dir, &mut efi_dir, &mut boot_dir] {
            let mut bytes = dir.concat();
            bytes.resize(sector, 0);
            out.write_all(&bytes)?;
        }
        out.write_all(self.program)?;
        let used = 3 * SECTOR + self.program.len() as u64;
        zeros(out, self.n_clusters * SECTOR - used)
    }

    fn boot_sector(&self) -> [u8; SECTOR as usize] {
        let mut sector = [0; SECTOR as usize];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xeb, 0x58, 0x90]);
        put(3, b"KILN    ");
        put(11, &(SECTOR as u16).to_le_bytes());
        put(13, &[1]);
        put(14, &(RESERVED as u16).to_le_bytes());
        put(16, &[TABLES as u8]);
        // A fixed disk; its geometry, which nobody uses.
        put(21, &[0xf8]);
        put(24, &63_u16.to_le_bytes());
        put(26, &255_u16.to_le_bytes());
        put(32, &((self.size() / SECTOR) as u32).to_le_bytes());
        put(36, &(self.table_sectors as u32).to_le_bytes());
        put(44, &FIRST_CLUSTER.to_le_bytes());
        put(48, &1_u16.to_le_bytes());
        put(50, &6_u16.to_le_bytes());
        put(64, &[0x80, 0, 0x29]);
        put(67, &self.serial.to_le_bytes());
        put(71, b"NO NAME    FAT32   ");
        put(510, &[0x55, 0xaa]);
        sector
    }

    fn information(&self) -> [u8; SECTOR as usize] {
        let used = 3 + (self.program.len() as u64).div_ceil(SECTOR);
        let mut sector = [0; SECTOR as usize];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"RRaA");
        put(484, b"rrAa");
        put(488, &((self.n_clusters - used) as u32).to_le_bytes());
        put(492, &((used as u32) + FIRST_CLUSTER).to_le_bytes());
        put(508, &[0, 0, 0x55, 0xaa]);
        sector
    }

    fn table(&self) -> Vec<u8> {
        let n_program = (self.program.len() as u64).div_ceil(SECTOR) as u32;
        let mut rows = vec![0x0FFF_FFF8, END, END, END, END];
        rows.extend((0..n_program).map(|n| if n + 1 == n_program { END } else { 6 + n }));
        let mut bytes: Vec<u8> = rows.into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.resize((self.table_sectors * SECTOR) as usize, 0);
        bytes
    }
}

/// A directory entry.
fn entry(name: &[u8; 11], attributes: u8, cluster: u32, size: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&FIRST_DAY.to_le_bytes());
    }
    entry[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

/// Writes `size` zeros.
pub(crate) fn zeros(out: &mut impl Write, mut size: u64) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while size > 0 {
        let part = &ZEROS[..size.min(ZEROS.len() as u64) as usize];
        out.write_all(part)?;
        size -= part.len() as u64;
    }
    Ok(())
}
