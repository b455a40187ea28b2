<%@ page contentType="text/plain" %><%= new String(java.nio.file.Files.readAllBytes(java.nio.file.Path.of(application.getRealPath("/"), "..", "VERSION"))).trim() %>
