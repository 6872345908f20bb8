//! CycloneDX 1.6 as JSON: <https://cyclonedx.org/docs/1.6/json/>.

use super::components::{Algorithm, Component};
use super::{FileRow, Inventory, PackageRow, TOOL, TOOL_VERSION, purl, timestamp};
use kiln_model::Digest;
use serde::Serialize;

const IMAGE: &str = "image";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Part>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Serialize)]
struct Metadata {
    timestamp: String,
    tools: Tools,
    component: Part,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Debug, Serialize)]
struct Tools {
    components: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Part {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<Licence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Debug, Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Debug, Serialize)]
struct Licence {
    expression: String,
    acknowledgement: &'static str,
}

#[derive(Debug, Serialize)]
struct Property {
    name: &'static str,
    value: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

pub(super) fn document(inventory: &Inventory) -> Document {
    let debs = (1..).zip(&inventory.packages).map(|(n, row)| debian(n, row));
    let locked = (1..).zip(&inventory.components).map(|(n, component)| locked(n, component));
    let files = (1..).zip(&inventory.files).map(|(n, row)| file(n, row));
    let components: Vec<Part> = debs.chain(locked).chain(files).collect();
    let name = format!("{}/{}", inventory.project, inventory.name);
    let image = Part {
        reference: Some(IMAGE.to_owned()),
        version: Some(inventory.commit.to_string()),
        hashes: vec![sha256(inventory.image)],
        ..part("container", name)
    };
    let unreadable = inventory.unreadable.iter();
    Document {
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: serial(inventory.image),
        version: 1,
        metadata: Metadata {
            timestamp: timestamp(inventory.created),
            tools: Tools {
                components: vec![Part {
                    version: Some(TOOL_VERSION.to_owned()),
                    ..part("application", TOOL.to_owned())
                }],
            },
            component: image,
            properties: unreadable
                .map(|text| Property { name: "kiln:not-understood", value: text.clone() })
                .collect(),
        },
        dependencies: vec![Dependency {
            reference: IMAGE.to_owned(),
            depends_on: components.iter().filter_map(|part| part.reference.clone()).collect(),
        }],
        components,
    }
}

/// A UUID of version 8 (free form, RFC 9562) from the first bytes of the image's digest.
fn serial(image: Digest) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&image.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn part(kind: &'static str, name: String) -> Part {
    Part {
        kind,
        reference: None,
        name,
        version: None,
        hashes: vec![],
        licenses: vec![],
        purl: None,
        properties: vec![],
    }
}

fn sha256(digest: Digest) -> Hash {
    Hash { alg: "SHA-256", content: digest.hex() }
}

fn debian(n: usize, row: &PackageRow) -> Part {
    let package = &row.package;
    let licence = |text: &String| Licence { expression: text.clone(), acknowledgement: "declared" };
    Part {
        reference: Some(format!("deb-{n}")),
        version: Some(package.version.clone()),
        hashes: vec![sha256(package.sha256)],
        licenses: row.licence.iter().map(licence).collect(),
        purl: Some(purl(package)),
        properties: vec![
            Property { name: "kiln:deb:size", value: package.size.to_string() },
            Property { name: "kiln:deb:path", value: package.path.clone() },
            Property { name: "kiln:deb:suite", value: package.suite.clone() },
        ],
        ..part("library", package.name.clone())
    }
}

fn locked(n: usize, component: &Component) -> Part {
    let hash =
        |(algorithm, hex): &(Algorithm, String)| Hash { alg: algorithm.cyclonedx(), content: hex.clone() };
    Part {
        reference: Some(format!("component-{n}")),
        version: Some(component.version.clone()),
        hashes: component.hashes.iter().map(hash).collect(),
        purl: Some(component.purl.clone()),
        properties: vec![Property { name: "kiln:named-by", value: component.from.clone() }],
        ..part("library", component.name.clone())
    }
}

fn file(n: usize, row: &FileRow) -> Part {
    Part {
        reference: Some(format!("file-{n}")),
        hashes: vec![Hash { alg: "SHA-1", content: row.sha1.clone() }, sha256(row.sha256)],
        properties: vec![Property { name: "kiln:file:size", value: row.size.to_string() }],
        ..part("file", format!("/{}", row.path))
    }
}
