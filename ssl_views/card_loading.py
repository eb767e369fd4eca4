"""How to load an encoder, as its model card says it."""

from ssl_views.card_facts import CardFacts
from ssl_views.card_text import is_hub_id


def loading(facts: CardFacts, folder_name: str) -> str:
    """Return the section with code for timm, transformers and this package.

    Args:
        facts: what the card states.
        folder_name: what it says to load, where the title is no Hub id.
    """
    title, encoder = facts.details.title, facts.encoder
    on_hub = title is not None and is_hub_id(title)
    name = title if on_hub else folder_name
    source = f"{'hf-hub' if on_hub else 'local-dir'}:{name}"
    needs = f"import {encoder.needs}  # registers the architecture\n" if encoder.needs else ""
    image = {3: "an RGB image", 1: "a grey image"}.get(encoder.input_size[0])
    count, by_timm, by_auto = "N", "encoder(pixels)", "encoder(pixels)"
    transform = processor = ""
    if image is not None:
        count, image = "1", f"`image` is {image} of Pillow"
        transform = (
            "transform = timm.data.create_transform("
            "**timm.data.resolve_model_data_config(encoder))\n"
        )
        processor = f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
        by_timm = "encoder(transform(image).unsqueeze(0))"
        by_auto = 'encoder(**processor(image, return_tensors="pt"))'
    else:
        image = "`pixels` is a float tensor (N, C, H, W), normalized with the mean and std above"
    imports = "AutoImageProcessor, AutoModel" if processor else "AutoModel"
    return f"""With [timm](https://github.com/huggingface/pytorch-image-models); {image}:

```python
{needs}import timm

encoder = timm.create_model("{source}", pretrained=True).eval()
{transform}features = {by_timm}  # ({count}, {encoder.num_features})
```

With [transformers](https://github.com/huggingface/transformers):

```python
{needs}from transformers import {imports}

encoder = AutoModel.from_pretrained("{name}").eval()
{processor}features = {by_auto}.pooler_output  # ({count}, {encoder.num_features})
```

With `ssl_views`, to go on pretraining on your own images, or for feature maps in dense tasks:

```python
{needs}from ssl_views import TimmEncoderBackbone, from_encoder

model = from_encoder("{name}")
backbone = TimmEncoderBackbone.from_pretrained("{name}", out_indices=[-2, -1])
```"""
