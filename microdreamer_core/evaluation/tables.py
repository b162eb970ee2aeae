"""Tables that several protocols show."""

from __future__ import annotations

from .content import Series, Table


def truth_table(series: list[Series]) -> Table:
    """Every measure at the end of each method's runs."""
    measures = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3), "iou": ("silhouette IoU", 3), "chamfer": ("Chamfer", 4)}
    measures |= {
        "f_score": ("F-score at 0.03", 3),
        "evaluations_per_view": ("evaluations per view", 0),
        "seconds": ("seconds", 1),
    }
    rows = [(s.name, *(s.estimate(name).text(digits=digits) for name, (_, digits) in measures.items())) for s in series]
    return Table("Mean ± standard error over objects.", ("method", *(title for title, _ in measures.values())), tuple(rows))


def cost_table(series: list[Series], base: Series | None = None) -> Table:
    """Quality and cost at the end of each method's runs, and the difference to one of them, run by run."""
    measures = {"psnr": 2, "iou": 3, "evaluations_per_view": 0, "seconds": 1}
    header = ("method", "PSNR, dB", "silhouette IoU", "evaluations per view", "seconds", "runs")
    rows = [
        (s.name, *(s.estimate(name).text(digits=digits) for name, digits in measures.items()), str(sum(map(bool, s.results))))
        for s in series
    ]
    if base is not None:
        header = (*header, f"PSNR against {base.name}, dB")
        rows = [(*row, "" if s is base else s.minus(base, "psnr").interval()) for row, s in zip(rows, series, strict=True)]
    return Table("Mean ± standard error over objects.", header, tuple(rows))


def settings_table(series: list[Series]) -> Table:
    """What the methods were run with."""
    header = ("method", "plan", "optimisation", "guidance", "cameras", "reference weights")
    return Table("Settings.", header, tuple((s.name, *_settings(s.runs[0].settings)) for s in series))


def _settings(settings: dict) -> tuple[str, ...]:
    plan, sds = settings["plan"], settings.get("sds")
    low, high = plan["elevation_range"]
    sizes = " to ".join(map(str, plan["resolutions"]))
    cameras = f"{plan['views']} views, elevation {low:g}° to {high:g}°, {f'{sizes} px' if sizes else 'the model’s size'}"
    weights = f"colour {plan['ref_color_weight']:g}, opacity {plan['ref_opacity_weight']:g}"
    weights += f", paint {plan['ref_paint_weight']:g}" if plan.get("ref_paint_weight") else ""
    if sds is None:
        steps = f"{plan['init_steps']} + {plan['iterations']} × {plan['steps']} steps"
        return plan["name"], steps, f"{plan['guidance_scale']:g}", cameras, weights
    times = f"{sds['steps']} updates, {sds['form']}, t {sds['times']}"
    return f"SDS {sds['name']}", times, f"{sds['guidance_scale']:g}", cameras, weights
