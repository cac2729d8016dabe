"""Queue, step scheduler, costs and admission. Imports neither Starlette nor diffusers."""
