//! Adds sections to a PE32+ program for UEFI: what `objcopy --add-section` does to the stub of systemd to make a unified kernel
//! image. Sections go behind what is there, in memory and in the file.

/// Where fields lie in the headers ("PE Format", Microsoft).
const PE_OFFSET_AT: usize = 0x3c;
const COFF_SIZE: usize = 24;
const N_SECTIONS: usize = 6;
const OPTIONAL_SIZE: usize = 20;
const MAGIC: usize = COFF_SIZE;
const SECTION_ALIGNMENT: usize = COFF_SIZE + 32;
const FILE_ALIGNMENT: usize = COFF_SIZE + 36;
const INITIALIZED_SIZE: usize = COFF_SIZE + 8;
const IMAGE_SIZE: usize = COFF_SIZE + 56;
const HEADERS_SIZE: usize = COFF_SIZE + 60;
const CHECKSUM: usize = COFF_SIZE + 64;
const PE32_PLUS: u16 = 0x20b;
const SECTION: usize = 40;
/// Pages: what a kernel in a section needs, and all that firmware may ask for.
const PAGE: u32 = 4096;
/// Initialized data that can be read.
const DATA: u32 = 0x4000_0040;

/// `program` with `sections`, each a name of at most eight bytes and its content; none if it is no such program, or if its headers
/// have no room for more sections.
pub fn with_sections(program: &[u8], sections: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let mut out = program.to_vec();
    let pe = u32_at(&out, PE_OFFSET_AT)? as usize;
    if out.get(pe..pe + 4)? != b"PE\0\0" || u16_at(&out, pe + MAGIC)? != PE32_PLUS {
        return None;
    }
    let n_sections = u16_at(&out, pe + N_SECTIONS)?;
    let table = pe + COFF_SIZE + usize::from(u16_at(&out, pe + OPTIONAL_SIZE)?);
    let file_alignment = u32_at(&out, pe + FILE_ALIGNMENT)?.max(1);
    let section_alignment = u32_at(&out, pe + SECTION_ALIGNMENT)?.max(1);
    let end = table + SECTION * (usize::from(n_sections) + sections.len());
    if end > u32_at(&out, pe + HEADERS_SIZE)? as usize || end > out.len() {
        return None;
    }
    let (mut address, mut initialized) =
        (u32_at(&out, pe + IMAGE_SIZE)?, u32_at(&out, pe + INITIALIZED_SIZE)?);
    for (n, (name, content)) in sections.iter().enumerate() {
        address = address.checked_next_multiple_of(PAGE.max(section_alignment))?;
        out.resize(out.len().next_multiple_of(file_alignment as usize), 0);
        let place = u32::try_from(out.len()).ok()?;
        let size = u32::try_from(content.len()).ok()?;
        let stored = size.checked_next_multiple_of(file_alignment)?;
        let mut header = [0; SECTION];
        header.get_mut(..name.len().min(9)).filter(|_| name.len() <= 8)?.copy_from_slice(name.as_bytes());
        for (at, value) in [(8, size), (12, address), (16, stored), (20, place), (36, DATA)] {
            put(&mut header, at, value);
        }
        let at = table + SECTION * (usize::from(n_sections) + n);
        out[at..at + SECTION].copy_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(file_alignment as usize), 0);
        address = address.checked_add(size)?;
        initialized = initialized.checked_add(stored)?;
    }
    let n_sections = n_sections.checked_add(u16::try_from(sections.len()).ok()?)?;
    out[pe + N_SECTIONS..pe + N_SECTIONS + 2].copy_from_slice(&n_sections.to_le_bytes());
    put(&mut out, pe + INITIALIZED_SIZE, initialized);
    put(&mut out, pe + IMAGE_SIZE, address.checked_next_multiple_of(section_alignment)?);
    // Nobody looks at it in a program for UEFI; zero says that it was not computed.
    put(&mut out, pe + CHECKSUM, 0);
    Some(out)
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_for_uefi_is_refused() {
        for bytes in [&b""[..], b"MZ", &[0; 64], &[0xff; 4096]] {
            assert_eq!(with_sections(bytes, &[(".linux", b"x")]), None);
        }
    }
}
