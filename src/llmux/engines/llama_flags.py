"""The flags of llama-server: their names, and which take a value.

From llama.cpp's tools/server/README.md, autumn 2026, with some that older versions had. A flag that is not here is
passed on as it is. llama-server completes no flag, takes ``_`` for ``-``, and refuses ``--flag=VALUE`` (build 10068).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_WITH_VALUE = """
-a alias | adaptive-decay | adaptive-target | api-key | api-key-file | api-prefix | -b batch-size | -c ctx-size
-C cpu-mask | -Cb cpu-mask-batch | -Cbd cpu-mask-batch-draft spec-draft-cpu-mask-batch | cache-reuse
-Cd cpu-mask-draft spec-draft-cpu-mask | chat-template | chat-template-file | chat-template-kwargs
-cms checkpoint-min-step | control-vector | control-vector-layer-range | control-vector-scaled | cors-headers
cors-methods | cors-origins | cpu-strict | cpu-strict-batch | -Cr cpu-range | -cram cache-ram | -Crb cpu-range-batch
-Crd cpu-range-draft spec-draft-cpu-range | -ctk cache-type-k | -ctkd cache-type-k-draft spec-draft-type-k
-ctv cache-type-v | -ctvd cache-type-v-draft spec-draft-type-v | -ctxcp swa-checkpoints ctx-checkpoints
-dev device | -devd device-draft spec-draft-device | -dr docker-repo | draft draft-n draft-max | draft-min draft-n-min
draft-p-min spec-draft-p-min | draft-p-split spec-draft-p-split | dry-allowed-length | dry-base | dry-multiplier
dry-penalty-last-n | dry-sequence-breaker | -dt defrag-thold | dynatemp-exp | dynatemp-range | embd-normalize
-fa flash-attn | -fit fit | -fitc fit-ctx | -fitt fit-target | frequency-penalty | grammar | grammar-file
-hf -hfr hf-repo | -hfd -hfrd hf-repo-draft spec-draft-hf | -hff hf-file | -hft hf-token | host | image-max-tokens
image-min-tokens | -j json-schema | -jf json-schema-file | keep | kv-unified-per-slot | -l logit-bias
-lcd lookup-cache-dynamic | -lcs lookup-cache-static | -lm load-mode | log-colors | log-file | log-prompts-dir | lora
lora-scaled | -lv log-verbosity verbosity | -lzm lazy-mode | -m model | mcp-servers-config | mcp-servers-json
-md model-draft spec-draft-model | media-path | -mg main-gpu | min-p | mirostat | mirostat-ent | mirostat-lr
-mm mmproj | -mmdev mmproj-device | -mmu mmproj-url | models-dir | models-max | models-preset | moe-cache-mib
mtmd-batch-max-tokens | -mu model-url | -n n-predict predict | -ncffn n-cpu-ffn | -ncmoe n-cpu-moe
-ncmoed spec-draft-ncmoe n-cpu-moe-draft spec-draft-n-cpu-moe | -ngl gpu-layers n-gpu-layers
-ngld gpu-layers-draft n-gpu-layers-draft spec-draft-ngl | -np parallel | numa | -ot override-tensor
-otd override-tensor-draft spec-draft-override-tensor | override-kv | path | poll | poll-batch | pooling | port
presence-penalty | prio | prio-batch | -r reverse-prompt | -rea reasoning | reasoning-budget
reasoning-budget-message | reasoning-effort | reasoning-format | repeat-last-n | repeat-penalty | rope-freq-base
rope-freq-scale | rope-scale | rope-scaling | rpc | -s seed | sampler-seq sampling-seq | samplers
sleep-idle-seconds | slot-save-path | -sm split-mode | spec-draft-n-max | spec-draft-n-min | spec-draft-sampling
spec-type | -sps slot-prompt-similarity | sse-ping-interval | ssl-cert-file | ssl-key-file | -t threads | tags
-tb threads-batch | -tbd threads-batch-draft spec-draft-threads-batch | -td threads-draft spec-draft-threads
temperature temp | threads-http | -to timeout | tools | tools-runtime | top-k | top-n-sigma top-nsigma | top-p
-ts tensor-split | typical-p typical | -ub ubatch-size | ui-config-file webui-config-file | ui-config webui-config
video-ffmpeg-dir | video-fps | video-timestamp-interval | xtc-probability | xtc-threshold | yarn-attn-factor
yarn-beta-fast | yarn-beta-slow | yarn-ext-factor | yarn-orig-ctx
-hfv -hfrv hf-repo-v | -hffv hf-file-v | -mv model-vocoder | cpu-strict-draft spec-draft-cpu-strict
cpu-strict-batch-draft spec-draft-cpu-strict-batch | poll-draft spec-draft-poll | prio-draft spec-draft-prio
poll-batch-draft spec-draft-poll-batch | prio-batch-draft spec-draft-prio-batch | spec-ngram-mod-n-match
spec-ngram-mod-n-max | spec-ngram-mod-n-min | spec-ngram-map-k-min-hits | spec-ngram-map-k-size-m
spec-ngram-map-k-size-n | spec-ngram-map-k4v-min-hits | spec-ngram-map-k4v-size-m | spec-ngram-map-k4v-size-n
spec-ngram-simple-min-hits | spec-ngram-simple-size-m | spec-ngram-simple-size-n | spec-ngram-min-hits
spec-ngram-size-m | spec-ngram-size-n | spec-synth-len | spec-synth-rates
"""
"""The names of one flag between bars, its usual one last. Those with one dash have it here, the others take two."""

_SWITCHES = """
-ag agent / -no-ag no-agent | -bs backend-sampling | cache-idle-slots / no-cache-idle-slots
cache-prompt / no-cache-prompt | -cb cont-batching / -nocb no-cont-batching | check-tensors | -cmoe cpu-moe
-cmoed cpu-moe-draft spec-draft-cpu-moe | context-shift / no-context-shift | cors-credentials / no-cors-credentials
-dio direct-io / -ndio no-direct-io | -e escape / no-escape | embedding embeddings | ignore-eos | jinja / no-jinja
-kvo kv-offload / -nkvo no-kv-offload | -kvu kv-unified / -no-kvu no-kv-unified | log-disable
log-jsonl / no-log-jsonl | log-prefix / no-log-prefix | log-timestamps / no-log-timestamps
lora-init-without-apply | metrics | mlock | mmap / no-mmap | mmproj-auto / no-mmproj no-mmproj-auto
mmproj-offload / no-mmproj-offload | models-autoload / no-models-autoload | no-host | offline
op-offload / no-op-offload | perf / no-perf | prefill-assistant / no-prefill-assistant | props
reasoning-preserve / no-reasoning-preserve | repack / -nr no-repack | rerank reranking | reuse-port
skip-chat-parsing / no-skip-chat-parsing | slots / no-slots | -sp special
spec-draft-backend-sampling / no-spec-draft-backend-sampling | spec-default | spm-infill | swa-full
webui-mcp-proxy ui-mcp-proxy / no-webui-mcp-proxy no-ui-mcp-proxy | webui ui / no-webui no-ui
-v verbose log-verbose | warmup / no-warmup | embd-gemma-default | fim-qwen-1.5b-default | fim-qwen-3b-default
fim-qwen-7b-default | fim-qwen-7b-spec | fim-qwen-14b-spec | fim-qwen-30b-default | gpt-oss-20b-default
gpt-oss-120b-default | vision-gemma-4b-default | vision-gemma-12b-default | tts-use-guide-tokens
"""
"""The same for flags without a value; behind the slash the names that switch it off."""

_VARIABLES = {
    "batch": "batch-size",
    "ubatch": "ubatch-size",
    "n-parallel": "parallel",
    "endpoint-metrics": "metrics",
    "endpoint-props": "props",
    "endpoint-slots": "slots",
    "think": "reasoning-format",
    "think-budget": "reasoning-budget",
    "think-budget-message": "reasoning-budget-message",
    "static-path": "path",
    "rope-scaling-type": "rope-scaling",
    "log-verbosity": "verbosity",
    "checkpoint-min-spacing-nt": "checkpoint-min-step",
    "dio": "direct-io",
    "spec-draft-cache-type-k": "spec-draft-type-k",
    "spec-draft-cache-type-v": "spec-draft-type-v",
    "spec-draft-hf-repo": "spec-draft-hf",
}
"""Variables ``LLAMA_ARG_*`` that are not named as their flag is."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag under its usual name; ``negatives`` are those that switch it off."""

    name: str
    takes_value: bool
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """A flag on a command line with its value, or any other word, whose ``flag`` is None.

    ``key`` is what a presets file has in its place.
    """

    flag: Flag | None
    words: tuple[str, ...]
    value: str = ""
    key: str = ""


def _flags() -> Iterator[tuple[str, Flag]]:
    """Every name with one or two dashes, and its flag."""
    for names in _WITH_VALUE.replace("\n", "|").split("|"):
        for name in names.split():
            yield _dashed(name), Flag(names.split()[-1], takes_value=True)
    for names in _SWITCHES.replace("\n", "|").split("|"):
        on, _, off = names.partition("/")
        negatives = tuple(map(_dashed, off.split()))
        for name in (*map(_dashed, on.split()), *negatives):
            yield name, Flag(on.split()[-1], takes_value=False, negatives=negatives)


def _dashed(name: str) -> str:
    return name if name.startswith("-") else f"--{name}"


_FLAGS: Mapping[str, Flag] = dict(_flags())


def find(written: str) -> Flag | None:
    """The flag of a word with its dashes."""
    return _FLAGS.get(written) or (_FLAGS.get(written.replace("_", "-")) if written.startswith("--") else None)


def dashed(key: str) -> str:
    """The flag that a key of a presets file stands for, with its dashes; of one that is not known, two."""
    if key.startswith("LLAMA_ARG_"):
        plain = key.removeprefix("LLAMA_ARG_").lower().replace("_", "-")
        return f"--{_VARIABLES.get(plain, plain)}"
    return f"-{key}" if f"-{key}" in _FLAGS else f"--{key}"


def read(arguments: Sequence[str]) -> Iterator[Given]:
    """The flags of a command line with their values."""
    index = 0
    while index < len(arguments):
        word = arguments[index]
        name, equals, attached = word.partition("=")
        flag = find(name)
        if flag is None:
            yield Given(None, (word,))
        elif flag.takes_value and not equals:
            yield Given(flag, tuple(arguments[index : index + 2]), "".join(arguments[index + 1 : index + 2]))
            index += 1
        else:
            yield Given(flag, (word,), attached)
        index += 1


def value(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag's last occurrence, by its usual name; None if it is absent."""
    found = None
    for given in read(arguments):
        if given.flag is not None and given.flag.name == name:
            found = given.value
    return found


def is_on(arguments: Sequence[str], name: str, *, default: bool = False) -> bool:
    """Whether a flag without a value is on, by its usual name: its last occurrence tells."""
    on = default
    for given in read(arguments):
        if given.flag is not None and given.flag.name == name:
            on = given.words[0].replace("_", "-") not in given.flag.negatives
    return on
