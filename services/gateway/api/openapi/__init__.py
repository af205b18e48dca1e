"""The API's description, `/openapi.json`: made from the routes and the types of bodies."""
