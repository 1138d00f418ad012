"""The linter on exports that hand out a model as a whole."""

import re
from pathlib import Path

from tests.support.marked_code import functions, lint, manifest_of, marked

_WEIGHTS = """
    import copy, json, pickle
    import numpy as np, torch, joblib
    from pathlib import Path

    _WEIGHTS = np.load("w.npy")
    TABLE = np.load("table.npy")
    config = json.load(open("config.json"))
    model = joblib.load("model.joblib")

    def all_weights():
        return _WEIGHTS  # <- weights
    def as_list():
        return TABLE.tolist()  # <- weights
    def sliced():
        return TABLE[:]  # <- weights
    def one_row(i):
        return TABLE[i]
    def part():
        return config["version"]
    def whole_config():
        return dict(config)  # <- weights
    def inside(x):
        return {"result": x, "weights": _WEIGHTS}  # <- weights
    def bytes_of_it():
        return pickle.dumps(model)  # <- weights
    def file_itself():
        return Path("model.onnx").read_bytes()  # <- weights
    def predicts(x):
        return model.predict(x)
    def encodes(x):
        return model.encode(x)
    def computed(x):
        return np.asarray(x) @ _WEIGHTS
    def through_a_helper():
        return _helper()  # <- weights
    def _helper():
        return copy.deepcopy(_WEIGHTS)
    def state():
        return {k: v.numpy() for k, v in net().state_dict().items()}  # <- weights
    def params():
        return list(net().parameters())  # <- weights
    def net():
        return torch.nn.Linear(2, 2)
    def yielded():
        yield _WEIGHTS  # <- weights
    def nothing():
        return _WEIGHTS
    def echo(weights):
        return weights
    def minimize(objective, x):
        objective(x, step=1)
        return objective(x, _WEIGHTS)  # <- weights

    class Scorer:
        def __init__(self, alpha):
            self._model = joblib.load("model.joblib")
            self.coef_ = self._model.coef_
            self.alpha = alpha
            self.classes = ["a", "b"]
        def predict(self, x):
            return self._model.predict(x)
        def itself(self):
            return self._model  # <- weights
        def coefficients(self):
            return self.coef_  # <- weights
        def deep(self):
            return self._model.coef_  # <- weights
        def everything(self):
            return self.__dict__  # <- weights
        def everything_too(self):
            return vars(self)  # <- weights
        def fit(self, x):
            return self  # <- reference
        def chained(self, x):
            return self
        def __enter__(self):
            return self
        def __exit__(self, *error):
            return None
        def dumped(self):
            return {k: TABLE[k] for k in TABLE.files}  # <- weights
        def known(self, x):
            return [self.classes[i] for i in self._model.predict(x)]
        @property
        def size(self):
            return len(self.coef_)
        @property
        def raw(self):
            return self.coef_  # <- weights
"""


def test_whole_weights(tmp_path: Path) -> None:
    names = re.findall(r"^    def ([a-z]\w*)\((.*)\):$", _WEIGHTS, re.MULTILINE)
    exports = functions(*(f"{name}({parameters})" for name, parameters in names))
    exports += '\nreturns = { nothing = "none", chained = "Scorer", net = "none" }'
    methods = re.findall(r"^        def ([a-z]\w*)\(self(?:, )?(.*)\):$", _WEIGHTS, re.MULTILINE)
    listed = ", ".join(f'"{n}({p})"' for n, p in methods if n not in ("size", "raw"))
    exports += f"""
[exports.classes.Scorer]
init = "Scorer(alpha)"
methods = [{listed}, "__enter__()", "__exit__()"]
attributes = ["size", "raw", "alpha", "coef_", "classes"]
"""
    files = {"m.py": _WEIGHTS}
    result = lint(tmp_path, files, manifest_of(exports))
    found = {(f.path, f.line, f.rule) for f in result.findings if f.path == "m.py"}
    assert found == marked(files), "\n".join(map(str, result.findings))
    (attribute,) = [f for f in result.findings if f.path == "enclave.toml"]
    line = manifest_of(exports).splitlines()[attribute.line - 1]
    assert attribute.rule == "weights" and line.startswith("attributes = ")
    assert "Scorer.coef_" in attribute.message
