"""Where passes run: in this process, or divided among the workers of a Ray cluster.

Nothing here imports Ray before `lens_skills.config(engine="ray")` is in force and a pass begins.
"""

from lens_skills.engines.choice import chosen as chosen
from lens_skills.engines.division import Engine as Engine
from lens_skills.engines.division import Finished as Finished
from lens_skills.engines.division import Job as Job
from lens_skills.engines.division import Tick as Tick
from lens_skills.engines.division import cut as cut
from lens_skills.engines.division import ended_by_interrupt as ended_by_interrupt
from lens_skills.engines.division import in_order as in_order
from lens_skills.engines.division import refuse_divided as refuse_divided
