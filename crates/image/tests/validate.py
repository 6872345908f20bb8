"""Judges kiln's documents with libraries that share no code with it: `validate.py FOLDER` with `*.spdx.json`, `*.cdx.json`
and, if there, an envelope `statement.json` with its key `key.pem`. Prints what it saw; fails with the first fault."""

import base64
import glob
import json
import sys

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

folder = sys.argv[1]
for path in sorted(glob.glob(f"{folder}/*.spdx.json")):
    document = parse_file(path)
    faults = validate_full_spdx_document(document)
    assert not faults, f"{path}: {faults[0].validation_message[:400]}"
    assert document.creation_info.spdx_version == "SPDX-2.3"
    purls = [r.locator for p in document.packages for r in p.external_references]
    for purl in purls:
        assert PackageURL.from_string(purl).to_string() == purl, purl
    known = [p for p in document.packages if str(p.license_declared) != "NOASSERTION"]
    print(f"spdx packages {len(document.packages)} files {len(document.files)} licences {len(known)}")

for path in sorted(glob.glob(f"{folder}/*.cdx.json")):
    text = open(path).read()
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert fault is None, f"{path}: {fault}"
    bom = Bom.from_json(json.loads(text))
    print(f"cyclonedx components {len(bom.components)}")

for path in glob.glob(f"{folder}/statement.json"):
    envelope = json.load(open(path))
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"], validate=True)
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    key = load_pem_public_key(open(f"{folder}/key.pem", "rb").read())
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"], validate=True), message)
    try:
        key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message + b" ")
        raise SystemExit("a signature over something else was accepted")
    except Exception as error:
        assert type(error).__name__ == "InvalidSignature", error
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    print(f"statement about {statement['subject'][0]['name']} signed")
