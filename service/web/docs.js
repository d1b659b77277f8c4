"use strict";
// The key that is entered under "Authorize" stays in memory.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
