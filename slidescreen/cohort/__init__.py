"""The batch as a whole: one row a slide, what stands out, and how well it agrees with the truth."""

from slidescreen.batch.output import Output

def build_cohort(output: Output) -> str:
    return output.where("cohort.html")
