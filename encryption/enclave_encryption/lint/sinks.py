"""Tables of what is dangerous with a user's value in it, and of what is not.

Names are as after `import numpy`, whatever the code calls them.
"""

from typing import Final

__all__ = [
    "CLEAN_ATTRIBUTES",
    "CLEAN_CALLS",
    "CLEAN_METHODS",
    "CLEAN_PREFIXES",
    "COPIES",
    "COPYING_METHODS",
    "FUNCTION_SINKS",
    "LOADERS",
    "METHOD_SINKS",
    "MUTATORS",
    "PATH_METHODS",
    "PATH_PREFIXES",
    "PATTERN_CALLS",
    "STREAMS",
    "WHOLE_METHODS",
]

_Sink = tuple[str, int, tuple[str, ...]]


def _names(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for name in names.split())


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _rules(rule: str, position: int, keywords: str, *names: str) -> dict[str, _Sink]:
    return {name: (rule, position, tuple(keywords.split())) for name in names}


FUNCTION_SINKS: Final[dict[str, _Sink]] = {
    **_rules("eval", 0, "source", *_names("builtins.", "eval exec compile")),
    **_rules("eval", 0, "expr ex", "pandas.eval", "numexpr.evaluate", "numexpr.re_evaluate"),
    **_rules("eval", 0, "", "numexpr.NumExpr", "sympy.sympify", "sympy.S", "sympy.parse_expr"),
    **_rules("eval", 0, "", "sympy.parsing.sympy_parser.parse_expr", "timeit.timeit"),
    **_rules("eval", 1, "expr", "sympy.lambdify"),
    **_rules("format", 0, "template source", "string.Template", "jinja2.Template"),
    **_rules("format", 0, "source", "flask.render_template_string"),
    **_rules("format", 0, "text", "mako.template.Template", "string.Formatter.format"),
    **_rules("pickle", 0, "file filename data", *_names("pickle.", "load loads Unpickler")),
    **_rules("pickle", 0, "file filename", *_names("_pickle.", "load loads Unpickler")),
    **_rules("pickle", 0, "filename", "joblib.load", "shelve.open", "jsonpickle.decode"),
    **_rules("pickle", 0, "file str", *_names("dill.", "load loads")),
    **_rules("pickle", 0, "file", *_names("cloudpickle.", "load loads"), "pandas.read_hdf"),
    **_rules("pickle", 0, "filepath_or_buffer", "pandas.read_pickle", "marshal.load"),
    **_rules("pickle", 0, "f", "torch.load", "torch.jit.load", "marshal.loads"),
    **_rules("pickle", 0, "stream", *_names("yaml.", "load load_all unsafe_load full_load")),
    **_rules("pickle", 0, "stream", *_names("yaml.", "unsafe_load_all full_load_all")),
    **_rules("pickle", 0, "filepath", "keras.models.load_model", "keras.saving.load_model"),
    **_rules("pickle", 0, "filepath", "tensorflow.keras.models.load_model"),
    **_rules("getattr", 1, "name", *_names("builtins.", "getattr setattr delattr")),
    **_rules("getattr", 0, "", "operator.attrgetter", "operator.methodcaller"),
    **_rules("import", 0, "name", "builtins.__import__", "importlib.import_module"),
    **_rules("import", 0, "name", "importlib.__import__", "pkgutil.resolve_name", "pydoc.locate"),
    **_rules("import", 0, "", "runpy.run_path", "runpy.run_module", "ctypes.CDLL"),
    **_rules("import", 0, "", "ctypes.cdll.LoadLibrary", "hydra.utils.instantiate"),
    **_rules("import", 1, "location", "importlib.util.spec_from_file_location"),
    **_rules("run", 0, "args cmd", *_names("subprocess.", "run call check_call check_output")),
    **_rules("run", 0, "args cmd", *_names("subprocess.", "Popen getoutput getstatusoutput")),
    **_rules("run", 0, "command", *_names("os.", "system popen execv execve execvp execl")),
    **_rules("run", 1, "", *_names("os.", "spawnv spawnl spawnve spawnvp posix_spawn")),
    **_rules("run", 0, "", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    **_rules("run", 0, "", "pty.spawn"),
    **_rules("regex", 0, "pattern", *_names("re.", "compile match search fullmatch sub subn")),
    **_rules("regex", 0, "pattern", *_names("re.", "split findall finditer")),
    **_rules("regex", 0, "pattern", *_names("regex.", "compile match search fullmatch sub split")),
    **_rules("sql", 0, "sql", *_names("pandas.", "read_sql read_sql_query"), "pandasql.sqldf"),
    **_rules("sql", 0, "query text", "sqlalchemy.text", "sqlalchemy.sql.text", "polars.sql"),
    **_rules("sql", 0, "query", *_names("duckdb.", "sql query execute"), "polars.SQLContext"),
    **_rules("open", 0, "file path", "builtins.open", "io.open", "codecs.open"),
    **_rules("open", 0, "path", *_names("os.", "open listdir scandir walk remove unlink rmdir")),
    **_rules("open", 0, "path src", *_names("os.", "rename replace mkdir makedirs symlink link")),
    **_rules("open", 0, "src path", *_names("shutil.", "copy copy2 copyfile copytree move rmtree")),
    **_rules("open", 0, "filename", "shutil.unpack_archive", "glob.glob", "glob.iglob"),
    **_rules("open", 0, "file fname", *_names("numpy.", "load loadtxt genfromtxt fromfile memmap")),
    **_rules("open", 0, "file fname", *_names("numpy.", "save savez savez_compressed savetxt")),
    **_rules("open", 0, "fp", "PIL.Image.open", "PIL.ImageFont.truetype"),
    **_rules("open", 0, "filename", *_names("cv2.", "imread imreadmulti imwrite VideoCapture")),
    **_rules("open", 0, "uri", *_names("imageio.", "imread v2.imread v3.imread mimread volread")),
    **_rules("open", 0, "fname", "skimage.io.imread", "tifffile.imread", "matplotlib.image.imread"),
    **_rules(
        "open", 0, "", "matplotlib.pyplot.imread", "scipy.io.loadmat", "scipy.io.wavfile.read"
    ),
    **_rules(
        "open", 0, "path file", "librosa.load", "soundfile.read", "torchaudio.load", "wave.open"
    ),
    **_rules("open", 0, "name", "h5py.File", "netCDF4.Dataset", "tarfile.open", "zipfile.ZipFile"),
    **_rules("open", 0, "filename", "gzip.open", "bz2.open", "lzma.open", "linecache.getline"),
    **_rules("open", 0, "database", "sqlite3.connect", "duckdb.connect"),
    **_rules("open", 0, "f", "onnx.load", "onnxruntime.InferenceSession", "lxml.etree.parse"),
    **_rules("open", 0, "source", "xml.etree.ElementTree.parse", "xml.dom.minidom.parse"),
    **_rules("open", 0, "source", *_names("pyarrow.", "parquet.read_table feather.read_table")),
    **_rules("open", 0, "source", "pyarrow.memory_map", "pyarrow.OSFile", "pyarrow.csv.read_csv"),
    **_rules("open", 0, "filename_or_obj", *_names("xarray.", "open_dataset open_dataarray")),
    **_rules("open", 0, "", "tokenize.open", "fileinput.input", "numpy.lib.format.open_memmap"),
}
"""Rule, position and keywords of the dangerous argument."""

PATH_PREFIXES: Final = ("pandas.read_", "polars.read_", "polars.scan_", "geopandas.read_")
"""Readers whose first argument is a path."""

PATH_METHODS: Final = _words(
    "open read_text read_bytes write_text write_bytes unlink iterdir glob rglob rename replace "
    "mkdir rmdir touch symlink_to hardlink_to"
)
"""Of a `pathlib.Path`."""

METHOD_SINKS: Final[dict[str, _Sink]] = {
    **_rules("eval", 0, "expr", "query", "eval"),
    **_rules("sql", 0, "sql query statement", "execute", "executemany", "executescript"),
    **_rules("format", 0, "source", "from_string"),
    **_rules("open", 0, "pretrained_model_name_or_path", "from_pretrained"),
    **_rules("getattr", 0, "", "__getattribute__", "__getattr__", "__setattr__"),
}
"""Of objects that are not the package's own: rule, position, keywords."""

CLEAN_CALLS: Final = frozenset(
    (
        *_names("builtins.", "int float bool complex len isinstance issubclass hash id abs ord"),
        *_names("builtins.", "type range callable any all hasattr divmod pow round print"),
        *_names("numpy.", "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32"),
        *_names("numpy.", "uint64 bool_ isfinite isnan shape ndim size mean sum std dot"),
        *_names("math.", "sqrt exp log floor ceil isfinite isnan fabs sin cos tan pow"),
        *_names("datetime.", "datetime.fromisoformat date.fromisoformat datetime.strptime"),
        *_names("os.path.", "exists isfile isdir getsize"),
        "uuid.UUID", "uuid.uuid5", "decimal.Decimal", "fractions.Fraction", "zlib.crc32",
        "ipaddress.ip_address",
    )
)  # fmt: skip
"""Their results are numbers and the like, whatever went in."""

CLEAN_PREFIXES: Final = ("hashlib.", "hmac.", "logging.", "warnings.", "secrets.", "time.")

CLEAN_METHODS: Final = _words(
    "startswith endswith isdigit isdecimal isnumeric isalnum isalpha isidentifier isspace isupper "
    "islower count index find rfind hexdigest digest mean sum std var argmax argmin any all "
    "nunique total_seconds timestamp toordinal weekday isoformat bit_length"
)
CLEAN_ATTRIBUTES: Final = _words("shape ndim size nbytes itemsize dtype dtypes width height")
"""Numbers about a value."""

PATTERN_CALLS: Final = frozenset(
    {
        "os.path.basename", "ntpath.basename", "posixpath.basename", "re.escape", "regex.escape",
        "werkzeug.utils.secure_filename", "urllib.parse.quote_plus",
    }
)  # fmt: skip
"""What they return leads into no other folder and is no pattern."""

STREAMS: Final = frozenset(
    {"io.BytesIO", "io.StringIO", "pyarrow.BufferReader", "pyarrow.py_buffer"}
)

LOADERS: Final = frozenset(
    (
        *_names("pickle.", "load loads"), *_names("dill.", "load loads"), "joblib.load",
        *_names("numpy.", "load loadtxt genfromtxt fromfile memmap"), "torch.load", "json.load",
        "builtins.open", "io.open", "gzip.open", "bz2.open", "lzma.open", "pkgutil.get_data",
        "safetensors.numpy.load_file", "safetensors.torch.load_file", "h5py.File",
        "cloudpickle.load",
        "scipy.sparse.load_npz", "scipy.io.loadmat", "yaml.safe_load", "yaml.load", "tomllib.load",
        "pyarrow.parquet.read_table", "pyarrow.feather.read_table", "importlib.resources.read_text",
        "importlib.resources.read_binary",
    )
)  # fmt: skip
"""What they return of a path that is not the user's is what a file of the package holds."""

COPIES: Final = frozenset(
    (
        *_names("builtins.", "list dict tuple set frozenset bytes bytearray str repr memoryview"),
        *_names("builtins.", "sorted reversed vars iter"), *_names("copy.", "copy deepcopy"),
        *_names("numpy.", "array asarray ascontiguousarray copy transpose ravel atleast_2d stack"),
        *_names("json.", "load loads dumps"), *_names("pickle.", "load loads dumps"),
        *_names("pandas.", "DataFrame Series"), *_names("base64.", "b64encode b64decode"),
        *_names("zlib.", "compress decompress"), *_names("yaml.", "safe_load dump safe_dump"),
        "torch.tensor", "torch.as_tensor", "torch.from_numpy", "dataclasses.asdict",
        "dataclasses.astuple", "csv.reader", "csv.DictReader", "tomllib.loads", "joblib.load",
        "numpy.load", "torch.load", "collections.OrderedDict", "types.MappingProxyType",
    )
)  # fmt: skip
"""What they return holds all that the argument held."""

COPYING_METHODS: Final = _words(
    "copy deepcopy tolist numpy detach cpu clone items values to to_dict to_numpy to_list to_json "
    "tobytes astype read read_text read_bytes readlines view reshape flatten ravel transpose "
    "todense toarray squeeze float half double contiguous as_dict model_dump decode encode "
    "splitlines"
)
WHOLE_METHODS: Final = _words(
    "state_dict named_parameters parameters named_buffers get_weights get_booster save_raw "
    "get_dump dump_model model_to_string get_input_embeddings __getstate__ __reduce__ "
    "__reduce_ex__ get_trainable_weights"
)
"""Of a model: all of its weights."""

MUTATORS: Final = _words(
    "append appendleft extend add update insert setdefault put put_nowait push write writelines"
)
"""They put their arguments into what they are called on."""
