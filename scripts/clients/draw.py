"""Draw a picture with a client's own defaults: ``draw.py CLIENT PROMPT``.

Runs in an environment of its own (see ``install``), where OPENAI_BASE_URL and OPENAI_API_KEY name
the cell. Prints what the client hands its user as the last line: an address or base64.
"""

import asyncio
import base64
import os
import sys

BASE_URL, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]


def openai(prompt: str) -> str:
    from openai import OpenAI

    return OpenAI().images.generate(prompt=prompt).data[0].b64_json


def openai_dall_e_3(prompt: str) -> str:
    from openai import OpenAI

    answer = OpenAI().images.generate(model="dall-e-3", prompt=prompt, style="vivid")
    return answer.data[0].url


def openai_stream(prompt: str) -> str:
    from openai import OpenAI

    stream = OpenAI().images.generate(prompt=prompt, stream=True, partial_images=2)
    return next(e.b64_json for e in stream if e.type == "image_generation.completed")


def openai_api_key_header(prompt: str) -> str:
    """With Azure's header in place of a bearer token."""
    from openai import Omit, OpenAI

    header = {"Authorization": Omit(), "api-key": KEY}
    return OpenAI().images.generate(prompt=prompt, extra_headers=header).data[0].b64_json


def litellm(prompt: str) -> str:
    import litellm as client

    answer = client.image_generation(model="openai/gpt-image-1", prompt=prompt, api_base=BASE_URL)
    return answer.data[0].b64_json


def langchain(prompt: str) -> str:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    return DallEAPIWrapper(base_url=BASE_URL).run(prompt)


def llama_index(prompt: str) -> str:
    from llama_index.tools.openai.image_generation.base import OpenAIImageGenerationToolSpec

    return OpenAIImageGenerationToolSpec().image_generation(prompt)


def haystack(prompt: str) -> str:
    from haystack.components.generators import OpenAIImageGenerator

    generator = OpenAIImageGenerator(api_base_url=BASE_URL)
    generator.warm_up()
    return generator.run(prompt=prompt)["images"][0]


def semantic_kernel(prompt: str) -> str:
    from semantic_kernel.connectors.ai.open_ai import OpenAITextToImage

    async def draw() -> str:
        return (await OpenAITextToImage("dall-e-3").generate_images(prompt))[0]

    return asyncio.run(draw())


def pydantic_ai(prompt: str) -> str:
    from pydantic_ai.images import ImageGenerator

    result = ImageGenerator("openai:gpt-image-2").generate_sync(prompt)
    return base64.b64encode(result.images[0].content.data).decode()


def agno_dalle(prompt: str) -> str:
    from agno.tools.dalle import DalleTools

    result = DalleTools().create_image(prompt)
    assert result.images, result.content
    return result.images[0].url


def agno_openai(prompt: str) -> str:
    from agno.tools.openai import OpenAITools

    result = OpenAITools().generate_image(prompt)
    assert result.images, result.content
    return base64.b64encode(result.images[0].content).decode()


CLIENTS = {
    name: function
    for name, function in list(globals().items())
    if callable(function) and getattr(function, "__module__", "") == __name__ and name[0] != "_"
}

if __name__ == "__main__":
    print(CLIENTS[sys.argv[1]](sys.argv[2]))
