"""Ranges, defaults and help texts that the command line, the nodes and the dataclasses share."""

from dataclasses import dataclass

import pytest

from microdreamer_core.cli.main import _parser, main
from microdreamer_core.diffusion.samplers import get_sampler
from microdreamer_core.errors import InputError
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.util.settings import check_settings, parse_assignments, setting, settings_of
from microdreamer_core.util.vocabulary import SAMPLERS


@dataclass(frozen=True)
class Oven:
    heat: float = setting(180.0, "degrees", 50, 250)
    trays: int = setting(2, "how many", 1, flag="--trays")
    mode: str = setting("fan", "what heats", choices=("fan", "grill"))
    timer: float | None = setting(None, "minutes", 0, optional=True)
    doors: int = 1
    limit: float = 300.0
    light: bool = True
    maker: str = ""
    racks: tuple = ()

    def __post_init__(self):
        check_settings(self, "the oven")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heat": 251}, "The setting heat of the oven must be a number in 50..250, got 251"),
        ({"heat": float("nan")}, "heat"),
        ({"heat": True}, "heat"),
        ({"trays": 1.5}, r"trays \(--trays\) of the oven must be a whole number of at least 1, got 1.5"),
        ({"mode": "cold"}, "one of fan, grill, got 'cold'"),
        ({"timer": -1}, "a number of at least 0, or None"),
        ({"heat": None}, "heat"),
        ({"heat": float("inf")}, "heat"),
        ({"doors": 1.0}, "The setting doors of the oven must be a whole number, got 1.0"),
        ({"limit": float("nan")}, "limit of the oven must be a number, got nan"),
        ({"limit": "hot"}, "limit of the oven must be a number, got 'hot'"),
        ({"light": 1}, "light of the oven must be true or false, got 1"),
        ({"maker": None}, "maker of the oven must be a text, got None"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(changes, message):
    with pytest.raises(InputError, match=message):
        Oven(**changes)
    assert Oven(timer=None, heat=50, trays=1) and Oven(timer=3)
    assert Oven(limit=float("inf"), doors=0, racks=[1]), "undeclared: of the default's type, of any size"


def test_without_an_owner_the_class_is_named():
    with pytest.raises(InputError, match=r"^DensitySettings\.every must be a whole number, got 0\.5\.$"):
        DensitySettings(every=0.5)


def test_assignments_are_read_by_the_kind_of_the_default():
    read = parse_assignments(
        SIRPlan, ["t2_start = 0.9", "views=6", "resolutions=64,128", "background=learned", "lr_networks=none"]
    )
    assert read == {"t2_start": 0.9, "views": 6, "resolutions": (64, 128), "background": "learned", "lr_networks": None}
    for wrong in ("t2_start", "speed=3", "views=many"):
        with pytest.raises(InputError, match=wrong):
            parse_assignments(SIRPlan, [wrong])


def test_every_number_and_choice_of_a_plan_is_declared_and_can_be_set():
    declared = settings_of(SIRPlan)
    assert {"name", "elevation_range", "elevation_limits", "resolutions"} == set(SIRPlan.__dataclass_fields__) - set(declared)
    for name, known in declared.items():
        assert known.allows(known.default) and known.help and not known.help.endswith("."), name


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_vocabulary_exists(name):
    assert callable(get_sampler(name, 0.0))


@pytest.mark.parametrize(("owner", "command"), [(MeshSettings, "mesh"), (SIRPlan, "image-to-3d")])
def test_the_command_line_has_an_option_for_every_declared_flag(owner, command, capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for known in settings_of(owner).values():
        if known.flag:
            assert known.flag in shown and known.help in shown


def test_a_field_given_twice_is_refused(capsys):
    assert main(["text-to-3d", "a bird", "--set", "iterations=1", "--iterations", "2"]) == 2
    assert "iterations is given twice" in capsys.readouterr().err
