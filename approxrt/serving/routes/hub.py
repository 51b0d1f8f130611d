"""POST / and /models/NAME: the body of a pipeline, as the Hugging Face hub's client and toolkit send it.

`inputs` are, for a classifier, a text, what /predict takes, {"text": ..., "text_pair": ...} or a list of such objects;
for an embedder, a text, a list of texts, or {"source_sentence": ..., "sentences": [...]}; those of models whose head
reads every token are in `approxrt.serving.routes.tokens`. Options stand beside the inputs or under `parameters`. The
client cannot name a model in the body: its address does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from approxrt.runtime.tokenize import Text
from approxrt.serving.disconnect import while_connected
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import EmbedOptions, Served
from approxrt.serving.routes.body import Body, Integer, Neutral, refuse_other_fields
from approxrt.serving.routes.common import Side, Strings, as_texts, registry_of, reply
from approxrt.serving.routes.route import JsonRoute
from approxrt.serving.routes.tei import cosines, predictions, sequences
from approxrt.serving.routes.tokens import OF_ANSWERS, OF_ENTITIES, answers, asks_a_question, entities

router = APIRouter(tags=["hugging-face-hub"], route_class=JsonRoute)

OF_LABELS = frozenset({"top_k", "function_to_apply", "truncate", "truncation_direction"})
OF_VECTORS = frozenset({"normalize", "prompt_name", "dimensions", "truncate", "truncation_direction"})
OF_ALL = OF_LABELS | OF_VECTORS | OF_ENTITIES | OF_ANSWERS


class Parameters(Body):
    """Options of all kinds of models; one that is not for the model at hand is refused."""

    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Side | None = None
    prompt_name: str | None = None
    dimensions: Integer | None = None
    top_k: Integer | None = Field(None, ge=1)
    function_to_apply: Literal["none", "sigmoid", "softmax"] | None = None
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Strings | None = None
    stride: Integer | None = None
    align_to_words: bool | None = None
    doc_stride: Integer | None = None
    handle_impossible_answer: bool | None = None
    max_answer_len: Integer | None = None
    max_question_len: Integer | None = None
    max_seq_len: Integer | None = None

    plain: ClassVar[Neutral] = {"encoding_format": ("float",), "truncation": (True,)}

    def refuse_all_but(self, names: frozenset[str], served: Served) -> None:
        """Raise RequestError for an option that this model has no use for."""
        for name in sorted(OF_ALL - names):
            if getattr(self, name) is not None:
                kind = served.model.spec.task_type
                raise RequestError(f"{name}: model {served.name!r} is for {kind}: leave it out", param=name)

    def embed_options(self) -> EmbedOptions:
        """Texts over the limit are cut unless it is said otherwise, as pipelines do."""
        return EmbedOptions(
            self.normalize is not False,
            self.truncate is not False,
            self.truncation_direction,
            self.prompt_name,
            self.dimensions,
        )


class RootBody(Parameters):
    inputs: Any
    parameters: Parameters | None = None
    options: dict[str, Any] | None = None
    model: str | None = None

    def refuse_unknown(self, place: str = "") -> None:
        """Refuse unknown parameters, too, and an option that is given in both places in two ways."""
        super().refuse_unknown(place)
        # How the hub itself queues and caches.
        refuse_other_fields(self.options or {}, frozenset({"use_cache", "use_gpu", "wait_for_model"}), "options.")
        if self.parameters is None:
            return
        self.parameters.refuse_unknown(f"{place}parameters.")
        for name in Parameters.model_fields:
            beside, under = getattr(self, name), getattr(self.parameters, name)
            if beside is not None and under is not None and beside != under:
                raise RequestError(f"{name} is {beside!r} beside the inputs and {under!r} in parameters", param=name)

    def together(self) -> Parameters:
        """Those beside the inputs and those under `parameters` together."""
        under = {} if self.parameters is None else self.parameters.model_dump(exclude_none=True)
        beside = self.model_dump(include=set(Parameters.model_fields), exclude_none=True)
        return Parameters.model_validate(beside | {k: v for k, v in under.items() if k in Parameters.model_fields})


@router.post("/")
@router.post("/models/{name}")
async def root(request: Request, body: RootBody) -> Response:
    """[[{score, label}]] of a model with labels, vectors or cosines of one without, entities, answers."""
    registry, inputs, options = registry_of(request), body.inputs, body.together()
    name = request.path_params.get("name")
    if name is not None and body.model not in (None, name):
        raise RequestError(f"model is {body.model!r} in the body and {name!r} in the address", param="model")
    if name is not None:
        registry.exactly(name)
    wanted = body.model if name is None else name
    if isinstance(inputs, dict) and "source_sentence" in inputs:
        served = registry.get(wanted, ("embedding",), "sentence similarity")
        options.refuse_all_but(OF_VECTORS, served)
        source, sentences = _similarity(inputs)
        work: Any = cosines(served, source, sentences, options.embed_options())
        return reply(await while_connected(request, work, served.crowded))
    # Pairs say what is asked; texts may be for any model.
    kinds: tuple[str, ...] | None = ("classifier", "reranker") if wanted is None and _has_pairs(inputs) else None
    if wanted is None and asks_a_question(inputs):
        kinds = ("question_answerer",)
    served = registry.get(wanted, kinds, "/")
    if served.model.spec.per_token:
        asked, known = (answers, OF_ANSWERS) if served.kind == "question_answerer" else (entities, OF_ENTITIES)
        options.refuse_all_but(known, served)
        given = options.model_dump(include=set(known), exclude_none=True)
        return reply(await while_connected(request, asked(served, inputs, given), served.crowded))
    if not served.labels:
        options.refuse_all_but(OF_VECTORS, served)
        work = served.embed(_single_texts(served, inputs), options.embed_options())
        return reply((await while_connected(request, work, served.crowded)).rows)
    options.refuse_all_but(OF_LABELS, served)
    work = predictions(
        served,
        _texts(inputs),
        options.function_to_apply,
        options.truncate is not False,
        options.truncation_direction,
    )
    found = await while_connected(request, work, served.crowded)
    return reply([each[: options.top_k] for each in found])


def _texts(inputs: Any) -> list[Text]:
    """Texts and pairs of every form. Raises RequestError."""
    if isinstance(inputs, dict):
        return [_object(inputs, "inputs")]
    if isinstance(inputs, list) and inputs and all(isinstance(item, dict) for item in inputs):
        return [_object(item, f"inputs[{i}]") for i, item in enumerate(inputs)]
    if isinstance(inputs, str) or _are_lists(inputs):
        return sequences(inputs)[0]
    raise RequestError(
        "inputs must be a text, a list as /predict takes it, an object with 'text' and perhaps 'text_pair', a list of "
        "such objects, or one with 'source_sentence' and 'sentences'",
        param="inputs",
    )


def _are_lists(inputs: Any) -> bool:
    return isinstance(inputs, list) and (
        all(isinstance(item, str) for item in inputs)
        or all(isinstance(item, list) and all(isinstance(part, str) for part in item) for item in inputs)
    )


def _object(item: dict[str, Any], place: str) -> Text:
    refuse_other_fields(item, frozenset({"text", "text_pair"}), f"{place}.")
    text, pair = item.get("text"), item.get("text_pair")
    if not isinstance(text, str) or not isinstance(pair, str | None):
        raise RequestError(f"{place} must have a text under 'text' and, for a pair, another under 'text_pair'")
    return text if pair is None else (text, pair)


def _has_pairs(inputs: Any) -> bool:
    items = inputs if isinstance(inputs, list) else [inputs]
    return any(isinstance(item, dict) and item.get("text_pair") is not None for item in items)


def _single_texts(served: Served, inputs: Any) -> list[Text]:
    """An embedder reads a list of texts as so many texts. Raises RequestError for pairs."""
    if isinstance(inputs, str) or (isinstance(inputs, list) and all(isinstance(item, str) for item in inputs)):
        return as_texts(inputs)
    texts = _texts(inputs)
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(f"model {served.name!r} embeds single texts: give a text or a list of texts", param="inputs")
    return texts


def _similarity(inputs: dict[str, Any]) -> tuple[str, list[str]]:
    refuse_other_fields(inputs, frozenset({"source_sentence", "sentences"}), "inputs.")
    source, sentences = inputs["source_sentence"], inputs.get("sentences")
    if not isinstance(source, str) or not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        raise RequestError("inputs must have a text 'source_sentence' and a list of texts 'sentences'", param="inputs")
    return source, sentences
