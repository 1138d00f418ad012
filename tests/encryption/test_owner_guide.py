"""The owner's guide is true: every key and rule is in it, and what it shows works."""

import re
from pathlib import Path

import msgspec

from enclave_encryption.lint.finding import RULES
from enclave_encryption.lint.package_lint import lint_package
from enclave_encryption.package_plan import plan_package
from enclave_protocol.manifest import ExportedClass, Manifest, Script, parse_manifest

GUIDE = (Path(__file__).parents[2] / "docs/owner_guide.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)


def test_every_key_is_in_the_example_and_no_other() -> None:
    (example,) = [text for kind, text in BLOCKS if kind == "toml"]
    structs: list[type[msgspec.Struct]] = [ExportedClass, Script]
    for table in msgspec.structs.fields(Manifest):
        if isinstance(table.type, type) and issubclass(table.type, msgspec.Struct):
            structs.append(table.type)
        assert f"[{table.name}" in example
    for struct in structs:
        for field in struct.__struct_fields__:
            assert re.search(rf"\b{field}( =|\.)", example), field
    # All but the exports of no one package is accepted; keys that do not exist would be refused.
    parse_manifest(example.replace('fit = "Scorer", batches = "iter", ', "").replace(
        'score = "score(applicants', 'score = "score(objective'
    ))  # fmt: skip


def test_every_rule_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| ", GUIDE, re.MULTILINE)) >= set(RULES)


def test_the_code_it_shows_is_as_it_says(tmp_path: Path) -> None:
    good, allowed = (text for kind, text in BLOCKS if kind == "python")
    module = f"import numpy as np\n{good}\ndef kept(frame, rule):\n{allowed}"
    module += "\ndef bad(table, how):\n    return getattr(np, how)(table)\n"
    (tmp_path / "m.py").write_text(module)
    (tmp_path / "enclave.toml").write_text(
        '[package]\nname = "m"\nmodule = "m"\n[exports]\nfunctions = { '
        'summary = "summary(table, how)", kept = "kept(frame, rule)", bad = "bad(table, how)" }\n'
    )
    plan = plan_package(tmp_path)
    (finding,) = lint_package(plan.manifest, plan.manifest_text, plan.code).findings
    assert finding.rule == "getattr" and "bad()" in finding.message
