//! A disk with a GUID partition table (UEFI specification 2.10, chapter 5): positions and table for partitions whose sizes are
//! known. Its GUIDs come from a seed, so that the same disk is the same bytes.

use sha2::Digest as _;

/// Bytes of a block, and where partitions begin.
pub const BLOCK: u64 = 512;
const ALIGNMENT: u64 = 1 << 20;
/// Rows of the table, their bytes, and the blocks that they take.
const ROWS: u64 = 128;
const ROW: usize = 128;
const TABLE_BLOCKS: u64 = ROWS * ROW as u64 / BLOCK;
const HEADER: usize = 92;
/// The EFI system partition, and the root of an x86-64 system ("Discoverable Partitions Specification").
pub const EFI_SYSTEM: [u8; 16] = guid(0xC12A_7328_F81F_11D2_BA4B_00A0_C93E_C93B);
pub const ROOT_X86_64: [u8; 16] = guid(0x4F68_BCE3_E8CD_4DB1_96E7_FBCA_F984_B709);
/// An attribute of that specification.
pub const READ_ONLY: u64 = 1 << 60;

/// The bytes of a GUID on a disk: its first three fields are little-endian.
const fn guid(text: u128) -> [u8; 16] {
    let mut bytes = text.to_be_bytes();
    let mut field = 0;
    while field < 3 {
        let (mut low, mut high) = [(0, 3), (4, 5), (6, 7)][field];
        while low < high {
            (bytes[low], bytes[high]) = (bytes[high], bytes[low]);
            low += 1;
            high -= 1;
        }
        field += 1;
    }
    bytes
}

/// A partition that is wanted.
#[derive(Debug, Clone)]
pub struct Partition {
    /// What it is for.
    pub kind: [u8; 16],
    /// Its name, in ASCII.
    pub name: &'static str,
    /// Bytes.
    pub size: u64,
    /// Attribute bits.
    pub attributes: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Where each partition begins.
    pub starts: Vec<u64>,
    /// Bytes of the whole disk.
    pub size: u64,
    /// Its first bytes, up to the first partition at the latest.
    pub head: Vec<u8>,
    /// Its last bytes.
    pub tail: Vec<u8>,
}

impl Disk {
    /// Lays `partitions` out one behind the other. `seed` decides on the GUIDs.
    pub fn new(partitions: &[Partition], seed: &[u8]) -> Self {
        let (mut starts, mut at) = (vec![], ALIGNMENT);
        for partition in partitions {
            starts.push(at);
            at = (at + partition.size).next_multiple_of(ALIGNMENT);
        }
        // The last alignment unit is for the second table.
        let size = at + ALIGNMENT;
        let n_blocks = size / BLOCK;
        let mut table = vec![0; (TABLE_BLOCKS * BLOCK) as usize];
        for (n, (partition, start)) in partitions.iter().zip(&starts).enumerate() {
            let row = &mut table[n * ROW..(n + 1) * ROW];
            row[..16].copy_from_slice(&partition.kind);
            row[16..32].copy_from_slice(&derived(seed, partition.name));
            row[32..40].copy_from_slice(&(start / BLOCK).to_le_bytes());
            let last = (start + partition.size).div_ceil(BLOCK) - 1;
            row[40..48].copy_from_slice(&last.to_le_bytes());
            row[48..56].copy_from_slice(&partition.attributes.to_le_bytes());
            for (place, unit) in row[56..].chunks_exact_mut(2).zip(partition.name.encode_utf16()) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        let header = |own: u64, other: u64, rows: u64| header(n_blocks, (own, other, rows), seed, &table);
        let (first, last) =
            (header(1, n_blocks - 1, 2), header(n_blocks - 1, 1, n_blocks - 1 - TABLE_BLOCKS));
        let head = [&protective(n_blocks)[..], &first, &table].concat();
        let tail = [&table[..], &last].concat();
        Self { starts, size, head, tail }
    }
}

fn header(n_blocks: u64, (own, other, rows): (u64, u64, u64), seed: &[u8], table: &[u8]) -> Vec<u8> {
    let mut header = b"EFI PART".to_vec();
    header.extend_from_slice(&0x0001_0000_u32.to_le_bytes());
    header.extend_from_slice(&(HEADER as u32).to_le_bytes());
    header.extend_from_slice(&[0; 8]);
    for place in [own, other, 2 + TABLE_BLOCKS, n_blocks - 2 - TABLE_BLOCKS] {
        header.extend_from_slice(&place.to_le_bytes());
    }
    header.extend_from_slice(&derived(seed, "disk"));
    header.extend_from_slice(&rows.to_le_bytes());
    header.extend_from_slice(&(ROWS as u32).to_le_bytes());
    header.extend_from_slice(&(ROW as u32).to_le_bytes());
    header.extend_from_slice(&crc32(table).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header.resize(BLOCK as usize, 0);
    header
}

/// The table of old: one partition over everything, so that old tools leave it alone.
fn protective(n_blocks: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    block[447..454].copy_from_slice(&[0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    block[454..458].copy_from_slice(&1_u32.to_le_bytes());
    let rest = u32::try_from(n_blocks - 1).unwrap_or(u32::MAX);
    block[458..462].copy_from_slice(&rest.to_le_bytes());
    block[510..].copy_from_slice(&[0x55, 0xaa]);
    block
}

/// A GUID of version 8 (RFC 9562) from a seed and a word.
fn derived(seed: &[u8], word: &str) -> [u8; 16] {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"kiln disk\0");
    hasher.update(seed);
    hasher.update(word);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize()[..16]);
    bytes[7] = bytes[7] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
