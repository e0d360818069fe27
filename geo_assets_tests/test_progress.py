from geo_assets.progress import Progress


def test_progress_says_count_rate_and_time_left_but_not_at_every_step() -> None:
    lines: list[str] = []
    progress = Progress(lines.append, "images", 1000, every_s=0)
    progress(250)
    assert "250 of 1,000 images" in lines[0]
    assert "s left" in lines[0]
    quiet = Progress(lines.append, "images", 1000, every_s=60)
    quiet(500)
    assert len(lines) == 1
