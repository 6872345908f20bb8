//! SPDX 2.3 as JSON: <https://spdx.github.io/spdx-spec/v2.3/>.

use super::components::Component;
use super::{FileRow, Inventory, PackageRow, TOOL, TOOL_VERSION, purl, timestamp};
use kiln_model::Digest;
use serde::Serialize;
use sha1::{Digest as _, Sha1};
use std::collections::BTreeSet;

const NONE: &str = "NOASSERTION";
const IMAGE: &str = "SPDXRef-image";
/// The files of the commit or the build: a part of the image of which every file is listed.
const APPLICATION: &str = "SPDXRef-application";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    creation_info: CreationInfo,
    packages: Vec<Package>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<File>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    has_extracted_licensing_infos: Vec<ExtractedLicence>,
    relationships: Vec<Relationship>,
}

#[derive(Debug, Serialize)]
struct CreationInfo {
    created: String,
    creators: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_info: Option<String>,
    download_location: &'static str,
    files_analyzed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_verification_code: Option<VerificationCode>,
    license_concluded: &'static str,
    license_declared: String,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary_package_purpose: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VerificationCode {
    package_verification_code_value: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalRef {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(rename = "SPDXID")]
    id: String,
    file_name: String,
    checksums: Vec<Checksum>,
    license_concluded: &'static str,
    copyright_text: &'static str,
    comment: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExtractedLicence {
    license_id: String,
    name: String,
    extracted_text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: &'static str,
    relationship_type: &'static str,
    related_spdx_element: String,
}

fn checksum(algorithm: &'static str, value: String) -> Checksum {
    Checksum { algorithm, checksum_value: value }
}

fn sha256(digest: Digest) -> Checksum {
    checksum("SHA256", digest.hex())
}

pub(super) fn document(inventory: &Inventory) -> Document {
    let mut packages = vec![image(inventory)];
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE.to_owned())];
    for (n, row) in (1..).zip(&inventory.packages) {
        packages.push(debian(n, row));
        relationships.push(relation(IMAGE, "CONTAINS", format!("SPDXRef-deb-{n}")));
    }
    for (n, component) in (1..).zip(&inventory.components) {
        packages.push(locked(n, component));
        relationships.push(relation(IMAGE, "DEPENDS_ON", format!("SPDXRef-component-{n}")));
    }
    let files: Vec<File> = (1..).zip(&inventory.files).map(|(n, row)| file(n, row)).collect();
    if !files.is_empty() {
        packages.push(application(inventory));
        relationships.push(relation(IMAGE, "CONTAINS", APPLICATION.to_owned()));
        relationships.extend(files.iter().map(|file| relation(APPLICATION, "CONTAINS", file.id.clone())));
    }
    let name = format!("{}-{}", inventory.project, inventory.name);
    let comment = (!inventory.unreadable.is_empty())
        .then(|| format!("not understood, so not listed: {}", inventory.unreadable.join("; ")));
    Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: "SPDXRef-DOCUMENT",
        // The form that the specification proposes; nothing is there, and nothing asks for it.
        document_namespace: format!("https://spdx.org/spdxdocs/{name}-{}", inventory.image.hex()),
        name,
        comment,
        creation_info: CreationInfo {
            created: timestamp(inventory.created),
            creators: vec![format!("Tool: {TOOL}-{TOOL_VERSION}")],
        },
        has_extracted_licensing_infos: extracted(inventory),
        packages,
        files,
        relationships,
    }
}

fn relation(from: &'static str, kind: &'static str, to: String) -> Relationship {
    Relationship { spdx_element_id: from, relationship_type: kind, related_spdx_element: to }
}

fn bare(id: String, name: String, version: Option<String>) -> Package {
    Package {
        id,
        name,
        version_info: version,
        download_location: NONE,
        files_analyzed: false,
        package_verification_code: None,
        license_concluded: NONE,
        license_declared: NONE.to_owned(),
        copyright_text: NONE,
        checksums: vec![],
        external_refs: vec![],
        primary_package_purpose: None,
        comment: None,
    }
}

fn reference(purl: String) -> Vec<ExternalRef> {
    vec![ExternalRef {
        reference_category: "PACKAGE-MANAGER",
        reference_type: "purl",
        reference_locator: purl,
    }]
}

fn image(inventory: &Inventory) -> Package {
    let name = format!("{}/{}", inventory.project, inventory.name);
    Package {
        checksums: vec![sha256(inventory.image)],
        primary_package_purpose: Some("CONTAINER"),
        ..bare(IMAGE.to_owned(), name, Some(inventory.commit.to_string()))
    }
}

/// Its verification code is the sha1 of the sorted sha1s of its files (SPDX 2.3, 7.9).
fn application(inventory: &Inventory) -> Package {
    let mut sums: Vec<&str> = inventory.files.iter().map(|row| row.sha1.as_str()).collect();
    sums.sort_unstable();
    let code = Sha1::digest(sums.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{}/{} application files", inventory.project, inventory.name);
    Package {
        files_analyzed: true,
        package_verification_code: Some(VerificationCode { package_verification_code_value: code }),
        primary_package_purpose: Some("APPLICATION"),
        ..bare(APPLICATION.to_owned(), name, Some(inventory.commit.to_string()))
    }
}

fn debian(n: usize, row: &PackageRow) -> Package {
    let package = &row.package;
    Package {
        license_declared: row.licence.clone().unwrap_or_else(|| NONE.to_owned()),
        checksums: vec![sha256(package.sha256)],
        external_refs: reference(purl(package)),
        comment: Some(format!(
            "the checksum is of the .deb of {} bytes, {} of suite {}",
            package.size, package.path, package.suite
        )),
        ..bare(format!("SPDXRef-deb-{n}"), package.name.clone(), Some(package.version.clone()))
    }
}

fn locked(n: usize, component: &Component) -> Package {
    let sum =
        |(algorithm, hex): &(super::components::Algorithm, String)| checksum(algorithm.spdx(), hex.clone());
    Package {
        checksums: component.hashes.iter().map(sum).collect(),
        external_refs: reference(component.purl.clone()),
        comment: Some(format!("named by {}", component.from)),
        ..bare(format!("SPDXRef-component-{n}"), component.name.clone(), Some(component.version.clone()))
    }
}

fn file(n: usize, row: &FileRow) -> File {
    File {
        id: format!("SPDXRef-file-{n}"),
        file_name: format!("./{}", row.path),
        checksums: vec![checksum("SHA1", row.sha1.clone()), sha256(row.sha256)],
        license_concluded: NONE,
        copyright_text: NONE,
        comment: format!("{} bytes", row.size),
    }
}

/// The names that Debian's copyright files use and SPDX does not know.
fn extracted(inventory: &Inventory) -> Vec<ExtractedLicence> {
    let expressions = inventory.packages.iter().filter_map(|row| row.licence.as_deref());
    let words = expressions.flat_map(|text| text.split([' ', '(', ')']));
    let own: BTreeSet<&str> = words.filter(|word| word.starts_with(super::licence::REFERENCE)).collect();
    own.into_iter()
        .map(|id| {
            let name = id.trim_start_matches(super::licence::REFERENCE);
            let text =
                format!("`{name}` in /usr/share/doc/PACKAGE/copyright of the packages that declare it");
            ExtractedLicence { license_id: id.to_owned(), name: name.to_owned(), extracted_text: text }
        })
        .collect()
}
